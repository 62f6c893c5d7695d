"""Traces of episodes: what comes out at the file and at a collector, with OpenTelemetry's own encoding to compare."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rock.domain.outcome import Completed, LedgerState, Void, VoidCause
from roll_core.config import Recipe
from roll_core.rollout.work import Booking
from roll_core.training.lines import parts
from roll_core.training.loggers import make_loggers
from roll_core.training.reporting import Reporters, report_published
from roll_core.training.tracing import LinesExporter, TraceReporter, otlp_json
from roll_core.training.tracing_spans import trace_id
from roll_core.types import Generation, Trajectory, Turn

BEGAN_S = 1_700_000_000.0
RUN = "run-0123456789"
STEP = {"time/learner_s": 2.0, "time/publish_wait_s": 0.5}


@pytest.fixture(autouse=True)
def _no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def trajectory(name: str, *, void: bool = False) -> Trajectory:
    turn = Turn((1, 2), Generation((3,), (-1.0,), (4,), "stop"), "seen", "said", "did", generate_s=2.0, env_s=1.0)
    outcome = Void(VoidCause.DEADLINE, "it hung") if void else Completed(0.25, True)
    return Trajectory(
        name, "g-1", "countdown", "t", 7, 4, (turn,), outcome,
        started_at_s=BEGAN_S, open_s=0.5, reset_s=0.5, ended_at_s=BEGAN_S + 5,
    )  # fmt: skip


def booking(name: str, state: LedgerState, step: int = 5) -> Booking:
    return Booking(name, state, step, trajectory(name, void=state is LedgerState.VOID))


class Clock:
    def __init__(self) -> None:
        self.now_s = BEGAN_S + 10

    def __call__(self) -> float:
        return self.now_s


def tracer(share: float = 1.0) -> tuple[TraceReporter, InMemorySpanExporter, Clock]:
    exporter, clock = InMemorySpanExporter(), Clock()
    return TraceReporter(RUN, share, [exporter], clock=clock), exporter, clock


def told(reporter: TraceReporter, exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    reporter._provider.force_flush()
    return list(exporter.get_finished_spans())


@pytest.mark.parametrize("first", ["metrics", "published"])
def test_a_trained_episode_is_told_once_its_times_and_its_weights_are_known(first: str) -> None:
    reporter, exporter, clock = tracer()
    reporter.episode(booking("ep-1", LedgerState.TRAINED), phase="train", split="train")
    clock.now_s += 3
    tell = {"metrics": lambda: reporter.metrics(5, STEP), "published": lambda: reporter.published(5)}
    tell.pop(first)()
    assert told(reporter, exporter) == []
    tell.popitem()[1]()
    spans = {span.name: span for span in told(reporter, exporter)}
    assert {"open", "reset", "generate", "step", "buffer", "learner step", "publish"} < set(spans)
    publish = spans["publish"]
    assert (publish.start_time, publish.end_time) == ((BEGAN_S + 10) * 1e9, (BEGAN_S + 13) * 1e9)
    assert publish.parent is not None
    assert publish.parent.span_id == spans["episode"].get_span_context().span_id
    assert {span.get_span_context().trace_id for span in spans.values()} == {trace_id(RUN, "ep-1")}
    reporter.close()
    assert len(exporter.get_finished_spans()) == len(spans)
    assert (reporter._trained, reporter._published) == ({}, {})


def test_what_is_not_trained_is_told_when_it_is_booked_and_evaluation_never() -> None:
    reporter, exporter, _ = tracer()
    reporter.episode(booking("ep-1", LedgerState.VOID), phase="train", split="train")
    reporter.episode(booking("ep-2", LedgerState.FILTERED), phase="train", split="train")
    reporter.episode(booking("ep-3", LedgerState.EVALUATED), phase="eval", split="test")
    episodes = [span for span in told(reporter, exporter) if span.name == "episode"]
    assert [span.attributes["rock.account"] for span in episodes if span.attributes] == ["void", "filtered"]
    assert [span.status.description for span in episodes] == ["deadline: it hung", None]
    reporter.close()


def test_an_episode_whose_weights_never_came_is_told_at_the_end() -> None:
    reporter, exporter, _ = tracer()
    reporter.episode(booking("ep-1", LedgerState.TRAINED), phase="train", split="train")
    reporter.metrics(5, STEP)
    reporter.close()
    names = {span.name for span in exporter.get_finished_spans()}
    assert "learner step" in names
    assert "publish" not in names


def test_steps_without_sampled_episodes_are_forgotten() -> None:
    reporter, exporter, _ = tracer(share=0.0)
    for step in range(1, 50):
        reporter.episode(booking(f"ep-{step}", LedgerState.TRAINED, step), phase="train", split="train")
        reporter.published(step)
        reporter.metrics(step, STEP)
    assert (reporter._trained, reporter._published, told(reporter, exporter)) == ({}, {}, [])
    reporter.close()


def test_the_file_speaks_opentelemetrys_own_json() -> None:
    reporter, exporter, _ = tracer()
    reporter.episode(booking("ep-1", LedgerState.VOID), phase="train", split="train")
    reporter.episode(booking("ep-2", LedgerState.STALE), phase="train", split="train")
    spans = told(reporter, exporter)
    ours = json.loads(otlp_json(spans))["resourceSpans"][0]
    theirs = MessageToDict(encode_spans(spans))["resourceSpans"][0]
    assert ours["resource"] == theirs["resource"]
    known = [{k: v for k, v in _hexadecimal(span).items() if k != "flags"} for span in theirs["scopeSpans"][0]["spans"]]
    spelled = {"code": "STATUS_CODE_ERROR"}, "SPAN_KIND_INTERNAL"  # numbers in OTLP's JSON
    for span in ours["scopeSpans"][0]["spans"]:
        assert span["kind"] == 1
        span["kind"] = spelled[1]
        if span["status"].get("code") == 2:
            span["status"] |= spelled[0]
        assert {k: v for k, v in span.items() if v != []} in known
    assert len(known) == len(spans)
    reporter.close()


def _hexadecimal(span: dict[str, Any]) -> dict[str, Any]:
    ids = {k: base64.b64decode(span[k]).hex() for k in ("traceId", "spanId", "parentSpanId") if k in span}
    return span | ids


def recipe(**loggers: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "traced", "env": {"name": "e"}, "warm_start": {"demonstrations": 1}, "loggers": loggers}
    )


async def _report(directory: Path) -> None:
    reporter = Reporters(*make_loggers(recipe(traces=1.0), directory, RUN))
    reporter.episode(booking("ep-1", LedgerState.TRAINED), phase="train", split="train")
    reporter.metrics(5, STEP)
    report_published(reporter, 5)
    await reporter.status("completed", summary={"success_after": 1.0})
    await reporter.close()


def _file_spans(directory: Path) -> list[dict[str, Any]]:
    requests = [
        json.loads(line) for part in parts(directory / "traces.jsonl") for line in part.read_text().splitlines()
    ]
    return [span for request in requests for span in request["resourceSpans"][0]["scopeSpans"][0]["spans"]]


def test_a_recipe_that_asks_for_traces_gets_a_file_of_them(tmp_path: Path) -> None:
    asyncio.run(_report(tmp_path))
    spans = _file_spans(tmp_path)
    assert [s["name"] for s in spans if "parentSpanId" not in s] == ["episode"]
    assert {"generate", "learner step", "publish"} < {s["name"] for s in spans}


def test_the_file_is_bounded(tmp_path: Path) -> None:
    exporter = LinesExporter(tmp_path / "traces.jsonl", 64_000)
    reporter = TraceReporter(RUN, 1.0, [exporter])
    for number in range(200):
        reporter.episode(booking(f"ep-{number}", LedgerState.STALE), phase="train", split="train")
        reporter._provider.force_flush()
    reporter.close()
    assert 40_000 < sum(part.stat().st_size for part in parts(tmp_path / "traces.jsonl")) < 70_000
    assert any(("stringValue", "ep-199") in a["value"].items() for s in _file_spans(tmp_path) for a in s["attributes"])


def test_a_full_disk_costs_the_traces_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exporter = LinesExporter(tmp_path / "traces.jsonl", 1 << 20)
    exporter._lines.close()
    exporter._lines._descriptor = os.open("/dev/full", os.O_WRONLY)
    reporter, memory, _ = tracer()
    reporter.episode(booking("ep-1", LedgerState.STALE), phase="train", split="train")
    spans = told(reporter, memory)
    assert [exporter.export(spans) for _ in range(3)] == [SpanExportResult.FAILURE] * 3
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["traces are lost"]
    exporter.shutdown()
    reporter.close()


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """What a collector is to an exporter: it takes requests at /v1/traces."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_that_the_environment_names_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        asyncio.run(_report(tmp_path))
    sent = [span for r in received for rs in r.resource_spans for ss in rs.scope_spans for span in ss.spans]
    assert {(s.span_id.hex(), s.name) for s in sent} == {(s["spanId"], s["name"]) for s in _file_spans(tmp_path)}

"""OpenTelemetry traces of a share of a run's episodes: `loggers.traces` in the recipe, extra ``otel``.

They go to ``traces.jsonl`` in the run's directory, bounded, each line a request of OTLP's JSON encoding (what the
collector's file receiver reads); and to a collector where ``OTEL_EXPORTER_OTLP_ENDPOINT`` names one and the exporter is
installed. Invariants: an episode that is trained on is told when its weights have reached the engines, every other when
it is booked, each once; spans are written and sent by the library's threads, which drop what they cannot keep up with.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from rock.domain.outcome import LedgerState
from roll_core.errors import RecordError
from roll_core.rollout.work import Booking
from roll_core.training.lines import Lines
from roll_core.training.reporting import Phase
from roll_core.training.tracing_spans import Ending, episode_spans, sampled, trace_id
from roll_core.types import Trajectory

log = logging.getLogger(__name__)

TRACES = "traces.jsonl"
_SEND_S = 5.0
"""For one request to the collector, all tries: the end of a run waits for the last."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class _Ids(IdGenerator):
    """Trace ids that the caller sets, span ids at random."""

    def __init__(self) -> None:
        self.trace = 1
        self._random = RandomIdGenerator()

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self._random.generate_span_id()


class LinesExporter(SpanExporter):
    """Into a file of lines that never outgrows ``max_bytes``."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._lines = Lines(path, max_bytes)
        self._failed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            self._lines.append(otlp_json(spans))
        except RecordError as error:
            if not self._failed:
                log.error("traces are lost: %s", error)
            self._failed = True
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._lines.close()


class TraceReporter:
    """Follows one run. ``clock``: Unix seconds."""

    def __init__(
        self, run_id: str, share: float, exporters: Sequence[SpanExporter], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._run_id = run_id
        self._share = share
        self._clock = clock
        self._ids = _Ids()
        # Not the process' own provider: whoever embeds the trainer may have one.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            id_generator=self._ids,
            resource=Resource.create({"service.name": "rock-roll", "rock.run": run_id}),
            shutdown_on_exit=False,
        )
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("roll_core")
        self._trained: dict[int, list[tuple[Trajectory, Ending]]] = {}
        """By step, until its weights are published and its times are known."""
        self._published: dict[int, float] = {}

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None:
        trajectory = booking.trajectory
        if phase != "train" or trajectory is None or not sampled(self._run_id, trajectory.id, self._share):
            return
        ending = Ending(booking.state, booking.step, self._clock())
        if booking.state is LedgerState.TRAINED:
            self._trained.setdefault(booking.step, []).append((trajectory, ending))
        else:
            self._tell(trajectory, ending)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """The times of a step; the engines may have its weights already."""
        if "time/learner_s" not in values:
            return
        learner_s, wait_s = values["time/learner_s"], values.get("time/publish_wait_s", 0.0)
        self._trained[step] = [
            (trajectory, replace(ending, learner_s=learner_s, publish_wait_s=wait_s))
            for trajectory, ending in self._trained.get(step, [])
        ]
        self._tell_if_complete(step)

    def published(self, version: int) -> None:
        """Every engine samples with ``version`` from now on: the weights that the step of that number made."""
        self._published[version] = self._clock()
        self._tell_if_complete(version)

    def summary(self, summary: dict[str, Any]) -> None:
        return None

    def close(self) -> None:
        """Tell of what is left, as far as it came, and write and send everything."""
        for step in list(self._trained):
            self._tell_step(step)
        self._provider.shutdown()

    def _tell_if_complete(self, step: int) -> None:
        known = step in self._trained and all(e.learner_s is not None for _, e in self._trained[step])
        if known and step in self._published:
            self._tell_step(step)

    def _tell_step(self, step: int) -> None:
        published_at_s = self._published.pop(step, None)
        for trajectory, ending in self._trained.pop(step):
            self._tell(trajectory, replace(ending, published_at_s=published_at_s))

    def _tell(self, trajectory: Trajectory, ending: Ending) -> None:
        self._ids.trace = trace_id(self._run_id, trajectory.id)
        whole, *parts = episode_spans(trajectory, ending)
        context = Context()
        root = self._tracer.start_span(whole.name, context, attributes=whole.attributes, start_time=_ns(whole.start_s))
        if whole.error:
            root.set_status(Status(StatusCode.ERROR, whole.error))
        inside = set_span_in_context(root, context)
        for part in parts:
            span = self._tracer.start_span(part.name, inside, attributes=part.attributes, start_time=_ns(part.start_s))
            span.end(_ns(part.end_s))
        root.end(_ns(whole.end_s))


def make_tracer(directory: Path, run_id: str, share: float, max_bytes: int) -> TraceReporter:
    """To the run's directory, and to the collector that the environment names."""
    exporters: list[SpanExporter] = [LinesExporter(directory / TRACES, max_bytes)]
    if named := next((name for name in _ENDPOINTS if os.environ.get(name)), ""):
        if not _installed("opentelemetry.exporter.otlp.proto.http"):
            log.warning("%s is set, but traces go to %s only: pip install 'rock-roll[otel]'.", named, TRACES)
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporters.append(OTLPSpanExporter(timeout=_SEND_S))
    return TraceReporter(run_id, share, exporters)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is what it lies in
        return False


# --- OTLP's JSON encoding ---------------------------------------------------------------------------------------------


def otlp_json(spans: Sequence[ReadableSpan]) -> bytes:
    """Spans of one provider and one tracer as an ExportTraceServiceRequest, ids in hexadecimal as OTLP wants them."""
    resource, scope = spans[0].resource, spans[0].instrumentation_scope
    scoped = {"scope": {"name": scope.name if scope else ""}, "spans": [_span(span) for span in spans]}
    request = {
        "resourceSpans": [{"resource": {"attributes": _attributes(resource.attributes)}, "scopeSpans": [scoped]}]
    }
    return orjson.dumps(request)


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None  # the library types it so for spans of others
    fields: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": 1,  # internal
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": {},
    }
    if span.parent is not None:
        fields["parentSpanId"] = f"{span.parent.span_id:016x}"
    if span.status.status_code is StatusCode.ERROR:
        fields["status"] = {"code": 2, "message": span.status.description or ""}
    return fields


def _attributes(attributes: Any) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64 bits do not fit into a number of JSON
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": str(value)}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

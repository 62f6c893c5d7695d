"""Traces of a real run: each trained episode leads to the publication of the weights it made."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from roll_core.training.loggers import make_loggers
from roll_core.training.reporting import FileReporter, Reporters
from roll_core.training.run import RunIdentity, train
from roll_core.training.tracing_spans import sampled

DOCKER = Path(__file__).parents[3] / "docker"
RUN = "run-0123456789"


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_every_sampled_episode_is_traced_once_and_to_its_end(
    share, sessions, display, tmp_path, make_recipe, run_directory, monkeypatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    recipe = make_recipe(training={"steps": 3}, evaluation={"tasks": 0}, loggers={"traces": share})

    async def main() -> None:
        run_directory.create(recipe, RunIdentity(RUN))
        reporter = Reporters(FileReporter(run_directory.path), *make_loggers(recipe, run_directory.path, RUN))
        try:
            await train(recipe, run_directory, sessions, reporter, display, demo_cache=tmp_path / "demos")
        finally:
            await reporter.close()

    asyncio.run(main())
    booked = [json.loads(line) for line in (run_directory.path / "episodes.jsonl").read_text().splitlines()]
    in_training = [e for e in booked if e.get("phase", "train") == "train"]
    wanted = {e["id"]: e["ledger"] for e in in_training if sampled(RUN, e["id"], share)}
    traces = defaultdict(list)
    for line in (run_directory.path / "traces.jsonl").read_text().splitlines():
        for span in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            traces[span["traceId"]].append(span)
    roots = [[span for span in spans if "parentSpanId" not in span] for spans in traces.values()]
    assert all(len(root) == 1 for root in roots)
    told = {attributes(root)["rock.episode"]: attributes(root)["rock.account"] for (root,) in roots}
    assert told == wanted
    assert "trained" in told.values()
    for (root,), spans in zip(roots, traces.values(), strict=True):
        names = [span["name"] for span in spans]
        assert names.count("generate") == names.count("step") == int(attributes(root)["rock.turns"])
        trained = attributes(root)["rock.account"] == "trained"
        assert names.count("learner step") == names.count("publish") == int(trained)
        assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans)


def test_the_board_and_the_rules_name_metrics_that_a_run_reports(run, make_recipe, run_directory) -> None:
    run(make_recipe(training={"steps": 2}, evaluation={"tasks": 0}), run_directory)
    lines = (run_directory.path / "metrics.jsonl").read_text().splitlines()
    reported = {name for line in lines for name in json.loads(line)["values"]}
    files = (DOCKER / "grafana/rock-roll.json", DOCKER / "prometheus/rules.yml")
    asked = set(re.findall(r'rock_run_metric\{name=\\?"([^"\\]+)', "".join(file.read_text() for file in files)))
    assert len(asked) > 8
    assert asked <= reported


def attributes(span) -> dict[str, str]:
    return {a["key"]: str(next(iter(a["value"].values()))) for a in span["attributes"]}

"""Runs over several real engines: one dies in the middle, and the run goes on; what tunes itself keeps the recipe."""

from __future__ import annotations

import json
import math
import threading

import pytest

from rock.domain.outcome import LedgerState
from roll_core.engines.torch_engine import TorchEngine
from roll_core.errors import EngineDead
from roll_core.training import steering, tuner
from roll_core.training.checkpoint import load_state
from roll_core.training.event_log import decode
from roll_core.training.lines import read
from roll_core.training.replay import replay

STEPS, SAMPLES = 5, 8


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(
        engine={"count": 2, "slots": 4},
        rollout={"alpha": 1, "group_size": 4, "groups_per_batch": 2, "concurrency": 12},
        algorithm={"filter_zero_variance": False},
        warm_start={"epochs": 4},
        training={"steps": STEPS},
        evaluation={"tasks": 0},
    )


def records(directory, name: str) -> list[dict]:
    return [json.loads(line) for _, line in read(directory.path / name)]


def steps_of(directory) -> list[dict[str, float]]:
    return [r["values"] for r in records(directory, "metrics.jsonl") if "time/step_s" in r["values"]]


class Killer:
    """Lets the passes of one engine raise from the given number on, once; counts which engine sampled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_pass: int, deaths: int = 1) -> None:
        self.deaths = deaths
        self.kept: list[int] = []
        """Tokens that each request had when its engine died."""
        self._passes = 0
        self._lock = threading.Lock()
        original = TorchEngine._pass

        def faulty(engine: TorchEngine) -> None:
            with self._lock:
                self._passes += 1
                running = [len(r.versions) for r in engine._running]
                kill = self._passes >= at_pass and self.deaths > 0 and any(running)
                if kill:
                    self.deaths -= 1
                    self.kept += running
            if kill:
                raise RuntimeError("CUDA error: an illegal memory access")
            original(engine)

        monkeypatch.setattr(TorchEngine, "_pass", faulty)


def test_an_engine_dies_in_mid_run_and_nothing_is_lost_or_doubled(run, recipe, run_directory, monkeypatch) -> None:
    killer = Killer(monkeypatch, at_pass=40)
    assert run(recipe, run_directory).steps == STEPS
    assert killer.deaths == 0
    assert max(killer.kept) > 0, "it died in the middle of an answer"

    ledger = load_state(run_directory.checkpoints(2).latest()).machine.ledger
    assert ledger.in_flight == ()
    assert ledger.dispatched == sum(a.episodes for a in ledger.accounts.values())
    assert ledger.accounts[LedgerState.TRAINED].episodes == STEPS * SAMPLES
    assert ledger.accounts[LedgerState.VOID].episodes == 0, "no episode was spoilt"

    ends = {r["id"]: decode(r) for r in records(run_directory, "events.jsonl") if r["e"] == "end"}
    published = 0
    for record in records(run_directory, "events.jsonl"):
        if record["e"] == "publish":
            published = record["v"]
        if record["e"] == "start" and record["id"] in ends:
            assert record["v"] == published
            turns = ends[record["id"]].turns
            versions = [v for turn in turns for v in turn.generation.versions]
            assert versions == sorted(versions)
            assert all(v >= record["v"] for v in versions), "no engine serves with weights older than were published"
            for turn in turns:
                assert len(turn.generation.token_ids) == len(turn.generation.logprobs) == len(turn.generation.versions)
    steps = steps_of(run_directory)
    assert steps[-1]["engine/restarts"] == 1.0
    assert all(values[f"engine/{i}/tokens_per_s"] >= 0 for values in steps for i in (0, 1))
    assert all(r.same for r in replay(run_directory))


def test_each_engine_takes_part_and_has_its_own_numbers(run, recipe, run_directory) -> None:
    run(recipe, run_directory)
    steps = steps_of(run_directory)
    for index in (0, 1):
        assert sum(values[f"engine/{index}/tokens_per_s"] for values in steps) > 0
    for values in steps:
        each = [values[f"engine/{i}/tokens_per_s"] for i in (0, 1)]
        assert values["rollout/tokens_per_s"] == pytest.approx(sum(each))


def test_engines_that_go_on_dying_end_the_run_with_their_reason(run, recipe, run_directory, monkeypatch) -> None:
    Killer(monkeypatch, at_pass=10, deaths=1000)
    with pytest.raises(EngineDead, match="illegal memory access"):
        run(recipe, run_directory)
    monkeypatch.undo()


def test_every_step_says_where_its_time_went(run, recipe, run_directory) -> None:
    summary = run(recipe, run_directory)
    for values in [*steps_of(run_directory), summary.work]:
        parts = {name for name in values if name.startswith("bubble/")} - {"bubble/total"}
        assert parts == {f"bubble/{c}" for c in ("tail", "environment", "sync", "train_wait", "redundancy")}
        assert sum(values[name] for name in parts) == pytest.approx(values["bubble/total"])
        assert 0 <= values["bubble/total"] < 1
        assert values["roofline/efficiency"] > 0
    assert "α = " in summary.advice
    assert {"auto/alpha", "auto/beta", "rollout/alpha"} <= steps_of(run_directory)[-1].keys()


@pytest.mark.parametrize("longest_s", [0.0, 1e6], ids=["nothing to hide", "much to hide"])
def test_a_run_that_tunes_itself_keeps_the_recipe_and_can_be_replayed(
    run, make_recipe, run_directory, monkeypatch, longest_s
) -> None:
    recipe = make_recipe(
        engine={"slots": 4},
        rollout={
            "alpha": 2, "group_size": 4, "groups_per_batch": 2, "concurrency": 12, "auto": True, "order": "finished",
        },
        algorithm={"filter_zero_variance": False},
        warm_start={"epochs": 4},
        training={"steps": 10},
        evaluation={"tasks": 0},
    )  # fmt: skip
    # What could go either way on a busy machine is set: the longest episode, and that none is lost or slow.
    measured = tuner.measure
    fixed = {"longest_s": longest_s, "void_rate": 0.0, "slow_rate": 0.0}

    def with_longest(steps, bounds):
        found = measured(steps, bounds)
        return type(found)(**{f: getattr(found, f) for f in found.__slots__} | fixed)

    monkeypatch.setattr(tuner, "measure", with_longest)
    monkeypatch.setattr(steering.os, "sched_getaffinity", lambda _: {0, 1})
    run(recipe, run_directory)
    steps, events = steps_of(run_directory), records(run_directory, "events.jsonl")
    assert all(values["staleness/max"] <= 2 for values in steps)
    assert all(values["rollout/alpha"] <= 2 for values in steps)
    tuned = [r for r in events if r["e"] == "tune"]
    if longest_s == 0.0:
        assert tuned[0]["alpha"] == 0
        assert "α 2 → 0" in tuned[0]["why"]
        assert steps[-1]["rollout/alpha"] == 0
        # what had begun at α = 2 is fresh for α more versions, and the next one may be on its way
        settled = steps[tuned[0]["step"] + 4 :]
        assert settled
        assert [values["staleness/max"] for values in settled] == [0] * len(settled)
        assert [r for r in events if r["e"] == "batch"][-1]["threads"] == 2
    else:
        assert steps[-1]["rollout/alpha"] == 2
    ended = {r["id"] for r in events if r["e"] == "end"}
    assert len(ended) >= 10 * SAMPLES
    assert all(r.same for r in replay(run_directory)), "also where the learner had more threads"
    assert math.isfinite(steps[-1]["auto/predicted_step_s"])

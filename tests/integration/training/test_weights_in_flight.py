"""New weights reach the engine in the middle of turns: every token keeps the version that sampled it, and the log-prob
it was sampled with, all the way into the batch that is trained on; for answers of one turn and for agents alike.
"""

from __future__ import annotations

import itertools
import json

import pytest

from roll_core.engines.torch_engine import TorchEngine
from roll_core.models import Tokenizer
from roll_core.training import assembly
from roll_core.training.event_log import FILE
from roll_core.training.lines import read

from .trained_on import logprobs_under, seen

__all__ = ["seen"]

BATCH = 8


class HoldingEngine(TorchEngine):
    """Answers of a later batch wait in the middle until the weights are there with which that batch is gathered."""

    def _pass(self) -> None:
        held = [r for r in self._running if r.logprobs and _batch_of(r.id) > self._version]
        if len(held) == len(self._running):
            with self._wake:
                self._wake.wait_for(lambda: self._commands or self._closing, 0.05)
            return
        self._running = [r for r in self._running if r not in held]
        try:
            super()._pass()
        finally:
            self._running += held


def _batch_of(request_id: str) -> int:
    """Episodes are numbered in the order in which they are started, and batches taken in that order."""
    return int(request_id.rpartition("/")[0].rpartition("-")[2]) // BATCH


@pytest.fixture
def _holding(monkeypatch) -> None:
    monkeypatch.setattr(assembly, "TorchEngine", HoldingEngine)


@pytest.mark.usefixtures("_holding")
@pytest.mark.parametrize("turns", [1, 3], ids=["one turn", "agent"])
def test_each_token_has_the_log_prob_of_the_version_that_sampled_it(
    run, make_recipe, run_directory, seen, turns: int
) -> None:
    recipe = make_recipe(
        env={"name": "doors", "options": {"doors": min(turns, 2)}},
        rollout={"alpha": 1, "group_size": 4, "groups_per_batch": 2, "concurrency": 16, "max_turns": turns},
        training={"steps": 6},
        evaluation={"tasks": 0},
        algorithm={"filter_zero_variance": False, "entropy_coef": 0.1},
        learner={"lr": 1e-2},
    )
    run(recipe, run_directory)
    batches, versions = seen
    assert len(batches) == 6
    model = assembly.make_model(recipe, Tokenizer.load(run_directory.tokenizer))
    wrong = 0.0
    for trained_at, batch in enumerate(batches):
        sampled_BT = batch.mask_BT > 0
        assert (batch.versions_BT[sampled_BT] <= trained_at).all()
        assert (batch.versions_BT[sampled_BT] >= trained_at - 1).all(), (
            "α = 1 bounds tokens of these short episodes too"
        )
        for version in batch.versions_BT[sampled_BT].unique().tolist():
            of_version_BT = sampled_BT & (batch.versions_BT == version)
            gap_BT = (logprobs_under(model, versions[version], batch) - batch.behaviour_logprobs_BT).abs()
            assert gap_BT[of_version_BT].max() < 1e-4
            if version:
                other_BT = (logprobs_under(model, versions[version - 1], batch) - batch.behaviour_logprobs_BT).abs()
                wrong = max(wrong, float(other_BT[of_version_BT].max()))
    assert wrong > 1e-2, "the versions differ, so that a token under the wrong one would have been noticed"
    mixed, kept = turns_with_two_versions(run_directory)
    assert mixed >= 5, "in every step but the first, turns went on under new weights"
    assert kept, "and what they had sampled before was kept"


def turns_with_two_versions(directory) -> tuple[int, bool]:
    mixed, kept = 0, True
    records = (json.loads(line) for _, line in read(directory.path / FILE))
    for turn in itertools.chain.from_iterable(r["t"] for r in records if r["e"] == "end"):
        if len(turn["v"]) > 1:
            mixed += 1
            kept &= all(count > 0 for _, count in turn["v"]) and [v for v, _ in turn["v"]] == sorted(
                v for v, _ in turn["v"]
            )
    return mixed, kept


def test_the_histogram_tells_the_ages_of_a_batch(run, make_recipe, run_directory) -> None:
    recipe = make_recipe(
        rollout={"alpha": 1, "group_size": 4, "groups_per_batch": 2},
        training={"steps": 4},
        evaluation={"tasks": 0},
    )
    run(recipe, run_directory)
    lines = [json.loads(line)["values"] for line in (run_directory.path / "metrics.jsonl").read_text().splitlines()]
    steps = [values for values in lines if "staleness/max" in values]
    assert len(steps) == 4
    for values in steps:
        shares = [value for name, value in values.items() if name.startswith("staleness/at_")]
        assert sum(shares) == pytest.approx(1)
        assert values["staleness/at_1"] == pytest.approx(values["staleness/mean"])
    assert steps[0]["staleness/at_0"] == 1

"""A learner that dies is replaced by one that is where it was, bit for bit, whenever it dies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roll_core.errors import LearnerDead
from roll_core.learners import LearnerConfig
from roll_core.learners.base import Scores
from roll_core.learners.recovering import RecoveringLearner
from roll_core.learners.torch_learner import TorchLearner
from roll_core.types import TrainBatch, Weights
from tests.unit.learners.sharing import flat, make_batch, policy

torch.set_num_threads(1)
CONFIG = LearnerConfig(lr=1e-2, updates_per_batch=2)


class Mortal:
    """A torch learner that dies in the calls it is told to, half of what it had to do done."""

    def __init__(self, deaths: list[int]) -> None:
        self._learner = TorchLearner(policy(), CONFIG)
        self._deaths = deaths  # calls that each life survives; shared by all lives
        self._calls_left = deaths.pop(0) if deaths else 10**9
        self.version = 0

    def _live(self) -> None:
        self._calls_left -= 1
        if self._calls_left < 0:
            raise LearnerDead("its machine is gone.")

    def train_step(self, batch: TrainBatch, *, progress: float = 0.0) -> dict[str, float]:
        metrics = self._learner.train_step(batch, progress=progress)
        self._live()
        self.version = self._learner.version
        return metrics

    def skip_step(self) -> dict[str, float]:
        self._live()
        metrics = self._learner.skip_step()
        self.version = self._learner.version
        return metrics

    def score(self, batch: TrainBatch) -> Scores:
        self._live()
        return self._learner.score(batch)

    def weights(self) -> Weights:
        self._live()
        return self._learner.weights()

    def save(self, directory: Path) -> None:
        self._learner.save(directory)
        self._live()

    def load(self, directory: Path) -> None:
        self._learner.load(directory)
        self.version = self._learner.version
        self._live()

    def close(self) -> None:
        self._calls_left = 0


def checkpoint(learner: RecoveringLearner | TorchLearner, folder: Path, number: int) -> None:
    """As a run writes it: beside, and then renamed."""
    partial = folder / f".partial-{number}"
    learner.save(partial / "learner")
    partial.rename(folder / f"step-{number}")


def play(learner: RecoveringLearner | TorchLearner, folder: Path, every: int) -> list[float]:
    seen = []
    for step in range(5):
        if step % every == 0:
            checkpoint(learner, folder, step)
        seen += learner.score(make_batch(step + 50)).logprobs_BT.sum(1).tolist()
        seen.append(learner.train_step(make_batch(step), progress=step / 5)["learner/loss"])
        if step == 2:
            learner.skip_step()
    return seen


@settings(max_examples=12)
@given(deaths=st.lists(st.integers(0, 9), max_size=4), every=st.integers(1, 4))
def test_whenever_it_dies_the_run_is_the_one_without_deaths(
    deaths: list[int], every: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    undisturbed, disturbed = (tmp_path_factory.mktemp(name) for name in ("one", "other"))
    plain = TorchLearner(policy(), CONFIG)
    expected = play(plain, undisturbed, every)
    lives = list(deaths)
    learner = RecoveringLearner(lambda: Mortal(lives), restarts=len(deaths))
    try:
        assert play(learner, disturbed, every) == expected
        assert learner.version == plain.version == 6
        assert torch.equal(flat(learner.weights().tensors), flat(plain.weights().tensors))
    finally:
        learner.close()


def test_more_deaths_than_allowed_end_it_with_advice() -> None:
    lives = [0, 0, 0]
    learner = RecoveringLearner(lambda: Mortal(lives), restarts=2)
    with pytest.raises(LearnerDead, match=r"replaced 2 times; learner.restarts allows no more.*micro_batch_tokens"):
        learner.train_step(make_batch())
    learner.close()


def test_an_error_that_is_no_death_replaces_nothing() -> None:
    learner = RecoveringLearner(lambda: Mortal([]), restarts=2)
    broken = make_batch()
    broken.tokens_BT = broken.tokens_BT + 1000
    before = learner.present
    with pytest.raises(IndexError):
        learner.train_step(broken)
    assert learner.present is before
    learner.close()


def test_a_checkpoint_that_was_given_up_does_not_take_the_one_before_with_it(tmp_path: Path) -> None:
    plain = TorchLearner(policy(), CONFIG)
    lives: list[int] = []
    learner = RecoveringLearner(lambda: Mortal(lives), restarts=1)
    for one in (plain, learner):
        one.train_step(make_batch(0))
    checkpoint(learner, tmp_path, 1)
    for one in (plain, learner):
        one.train_step(make_batch(1))
    learner.save(tmp_path / ".partial" / "learner")
    for file in sorted((tmp_path / ".partial").rglob("*"), reverse=True):  # the disk was full
        file.rmdir() if file.is_dir() else file.unlink()
    learner.present.close()  # type: ignore[attr-defined]
    assert torch.equal(flat(learner.weights().tensors), flat(plain.weights().tensors))
    learner.close()


def test_it_holds_on_to_no_more_directories_than_it_needs(tmp_path: Path) -> None:
    learner = RecoveringLearner(lambda: Mortal([]), restarts=1)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(6):
        checkpoint(learner, tmp_path, number)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    learner.close()
    assert len(os.listdir("/proc/self/fd")) <= before

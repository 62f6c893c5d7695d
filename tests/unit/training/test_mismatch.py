"""Drift between engine and learner: what is measured, when it alarms, and that it does not flicker."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roll_core.algorithms.mismatch import MismatchMeter
from roll_core.learners import LearnerConfig
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig
from roll_core.training.mismatch import DriftDetector, Line, lines
from roll_core.types import TrainBatch

torch.set_num_threads(1)
KL, ESS = "mismatch/k3_at_0", "mismatch/ess"


def measured(w: list[float], lag: list[int]) -> dict[str, float]:
    meter = MismatchMeter()
    logprobs, mask = torch.tensor([[math.log(x) for x in w]]), torch.ones(1, len(w))
    meter.add(logprobs, torch.zeros_like(logprobs), mask, torch.tensor([lag]))
    meter.add_clipped(torch.tensor([[x > 1.5 for x in w]]), mask, torch.tensor([lag]))
    return meter.values()


def test_the_numbers_are_those_of_their_formulas_by_lag() -> None:
    values = measured([1.0, 2.0, 0.5, 4.0], [0, 0, 2, 7])
    assert values["mismatch/gap_mean"] == pytest.approx(math.log(2) * 4 / 4)
    assert values["mismatch/gap_max"] == pytest.approx(math.log(4))
    assert values["mismatch/k3_at_0"] == pytest.approx((1 - math.log(2)) / 2)
    assert values["mismatch/k3_at_2"] == pytest.approx(0.5 - 1 + math.log(2))
    assert values["mismatch/ess"] == pytest.approx(7.5**2 / (4 * (1 + 4 + 0.25 + 16)))
    assert values["mismatch/ess_at_0"] == pytest.approx(9 / (2 * 5))
    assert values["mismatch/share_at_0"] == 0.5
    assert values["mismatch/gap_max_at_3_up"] == pytest.approx(math.log(4))
    assert values["mismatch/clipped"] == 0.5
    assert values["mismatch/clipped_at_2"] == 0
    assert not any("_at_1" in name for name in values)  # no token is one version old


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 6), st.booleans()), min_size=1, max_size=20), st.data())
def test_a_batch_may_come_in_parts_and_masked_tokens_do_not_count(
    tokens: list[tuple[float, int, bool]], data: st.DataObject
) -> None:
    logp, lag, kept = (torch.tensor([x]) for x in zip(*tokens, strict=True))
    zero, clipped = torch.zeros_like(logp), logp > 1
    whole, parts = MismatchMeter(), MismatchMeter()
    mask = kept.float()
    whole.add(torch.where(kept, logp, math.nan), zero, mask, lag)
    whole.add_clipped(clipped, mask, lag)
    cut = data.draw(st.integers(0, len(tokens)))
    for part in (slice(0, cut), slice(cut, None)):
        parts.add(logp[:, part], zero[:, part], mask[:, part], lag[:, part])
        parts.add_clipped(clipped[:, part], mask[:, part], lag[:, part])
    one, other = whole.values(), parts.values()
    assert one.keys() == other.keys()
    assert all(one[name] == pytest.approx(other[name]) for name in one)
    assert all(
        0 <= one[name] <= 1 + 1e-9 for name in one if name.startswith((ESS, "mismatch/clipped", "mismatch/share"))
    )
    assert bool(one) is bool(kept.any())


def test_the_learner_measures_before_its_first_update() -> None:
    config = ModelConfig(vocab=31, hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, intermediate=32)
    learner = TorchLearner(CausalLM(config, seed=1), LearnerConfig(lr=0.1, updates_per_batch=2, epochs=2))
    mask = torch.ones(4, 6)
    mask[:, 0] = 0
    tokens = torch.randint(0, 31, (4, 6), generator=torch.Generator().manual_seed(0))
    behaviour = learner.logprobs(tokens, mask)
    batch = TrainBatch(
        tokens, mask, torch.ones(4, 6), behaviour, mask, torch.zeros(4, 6).long(), torch.ones(4), torch.zeros(4).long()
    )
    metrics = learner.train_step(batch)
    assert metrics["mismatch/gap_max_at_0"] < 1e-5
    assert metrics["learner/behaviour_gap_max"] > 0.1  # that of the later updates
    metrics = learner.train_step(batch)
    assert metrics["mismatch/share_at_1"] == 1
    assert metrics["mismatch/k3_at_1"] > 0


def detector(patience: int = 3) -> DriftDetector:
    return DriftDetector(lines(0.01, 0.5), patience=patience)


def told(found: DriftDetector, name: str, *values: float) -> list[bool]:
    return [notice.raised for value in values for notice in found.observe({name: value})]


def test_an_alarm_needs_several_steps_in_a_row_and_so_does_its_end() -> None:
    found = detector()
    assert told(found, KL, 0.02, 0.02, 0.0, 0.02, 0.02) == []
    assert told(found, KL, 0.02) == [True]
    assert found.raised == {KL}
    assert told(found, KL, 0.001, 0.001, 0.02, 0.001, 0.001) == []
    assert told(found, KL, 0.001) == [False]
    assert found.raised == frozenset()


def test_values_around_the_limit_do_not_flicker() -> None:
    found = detector(1)
    assert told(found, KL, 0.0101) == [True]
    assert told(found, KL, 0.0099, 0.0101, 0.009, 0.0051) == []
    assert told(found, KL, 0.0049) == [False]


def test_a_falling_effective_sample_is_an_alarm_that_says_what_to_do() -> None:
    found = detector(2)
    notices = [n for value in (0.4, 0.3) for n in found.observe({ESS: value, KL: 0.0})]
    assert [n.text for n in notices] == [
        "mismatch/ess is 0.3, beyond 0.5 for 2 steps: the batch is far from the policy that learns from it: lower "
        "rollout.alpha or learner.lr, or set algorithm.correction."
    ]


def test_a_value_that_is_no_number_is_beyond_every_limit_and_a_missing_one_says_nothing() -> None:
    found = detector(2)
    assert told(found, KL, math.nan) == []
    assert found.observe({}) == []
    assert told(found, KL, math.nan) == [True]


@given(st.lists(st.floats(0, 0.05), max_size=60), st.integers(1, 4))
def test_alarms_begin_and_end_in_turn_and_never_within_the_patience(values: list[float], patience: int) -> None:
    found = DriftDetector((Line(KL, 0.0, 0.01, "x"),), patience=patience)
    changes = [(step, n.raised) for step, value in enumerate(values) for n in found.observe({KL: value})]
    assert [raised for _, raised in changes] == [i % 2 == 0 for i in range(len(changes))]
    steps = [-1, *(step for step, _ in changes)]
    assert all(later - earlier >= patience for earlier, later in itertools.pairwise(steps))


def test_a_detector_without_patience_is_refused() -> None:
    with pytest.raises(ValueError, match="patience=0"):
        detector(0)

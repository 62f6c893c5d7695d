"""What the benchmark of critics counts is what is there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks._comparing import Estimate
from benchmarks._critic_costs import QWEN3, batch_of, critic_activations, kept_bytes, qwen3_table, state_bytes
from benchmarks.asyppo import ARMS, HYPOTHESES, RECIPE, report, verdict
from roll_core.config import load_recipe
from roll_core.learners.critics import CriticLearner, ValueModel
from roll_core.models import CausalLM, ModelConfig
from roll_core.models.qwen import parameter_shapes

torch.set_num_threads(1)
TINY = ModelConfig(vocab=31, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=32)


def test_what_autograd_keeps_is_counted_once_and_without_parameters() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(16, 8)
    assert kept_bytes(layer, lambda: layer(x)) == 16 * 8 * 4, "the input, for the weight's gradient"
    assert kept_bytes(layer, lambda: layer(x) + layer(x)) == 16 * 8 * 4, "the same storage"
    assert kept_bytes(layer, lambda: layer(x).exp()) == 2 * 16 * 8 * 4, "and what exp gave"


def test_activations_grow_with_the_micro_batch_and_the_network() -> None:
    batch = batch_of(31)
    small = ValueModel(CausalLM(TINY), seed=1)
    large = ValueModel(CausalLM(ModelConfig(31, 32, 4, 4, 2, 8, 64)), seed=1)
    one, two = (critic_activations(small, batch, tokens) for tokens in (64 * 16, 64 * 32))
    assert one == pytest.approx(two / 2, rel=0.1)
    assert critic_activations(large, batch, 64 * 16) > 2 * one


def test_state_is_that_of_the_learner_s_own_account() -> None:
    critics = CriticLearner([ValueModel(CausalLM(TINY, seed=s), seed=s) for s in (1, 2)])
    critics.train_step(batch_of(31))
    assert state_bytes(critics.models, critics._optimizers) == critics.memory_bytes()


def test_qwen3_sizes_are_those_of_the_published_checkpoints() -> None:
    billions = {n: sum(torch.Size(s).numel() for s in parameter_shapes(c).values()) / 1e9 for n, c in QWEN3.items()}
    assert billions == pytest.approx({"0.6B": 0.596, "1.7B": 1.721, "4B": 4.022, "8B": 8.191, "14B": 14.768}, abs=1e-3)
    assert all(row["critic_state_ratio"] < 0.6 for row in qwen3_table())


def test_arms_are_recipes_and_hypotheses_are_about_arms() -> None:
    for overrides in ARMS.values():
        load_recipe(RECIPE, [*overrides, "critic.path=x"])
    assert {name for better, worse, _ in HYPOTHESES for name in (better, worse)} == set(ARMS)


def test_a_hypothesis_needs_several_seeds_and_an_interval_above_zero() -> None:
    def rate(share: float) -> dict[str, float]:
        return {"rate": share, "low": share, "high": share, "n": 100}

    def results(*shares: tuple[float, float]) -> dict[str, dict[int, dict[str, object]]]:
        both = list(enumerate(shares))
        return {"asyppo": {s: {"after": rate(a)} for s, (a, _) in both}} | {
            "ppo_symmetric": {s: {"after": rate(b)} for s, (_, b) in both}
        }

    def first(found: dict[str, dict[int, dict[str, object]]]) -> str:
        told = report(found)["hypotheses"][0]
        assert (told["better"], told["worse"]) == ("asyppo", "ppo_symmetric")
        return str(told["verdict"])

    assert first(results((0.9, 0.1))) == "one seed decides nothing"
    assert first(results((0.5, 0.4), (0.6, 0.5), (0.55, 0.44))) == "shown"
    assert first(results((0.4, 0.5), (0.5, 0.6), (0.44, 0.55))) == "refuted"
    assert first(results((0.5, 0.4), (0.4, 0.5), (0.5, 0.5))) == "not shown"
    assert "verdict" not in report(results((0.5, 0.4)))["hypotheses"][1], "its other arm was not played"
    assert verdict(Estimate(0.1, 0.05, 0.15, 5)) == "shown"

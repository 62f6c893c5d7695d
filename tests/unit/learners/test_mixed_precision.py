"""Passes in bfloat16: near those of float32, with everything that is kept in float32. And recomputed activations."""

from __future__ import annotations

import pytest
import torch

from roll_core.learners import LearnerConfig
from roll_core.learners.torch_learner import TorchLearner
from tests.unit.learners.sharing import batches, flat, make_batch, policy

torch.set_num_threads(1)


def test_bfloat16_scores_and_learns_nearly_like_float32_and_keeps_float32() -> None:
    full = TorchLearner(policy(), LearnerConfig(lr=1e-3))
    half = TorchLearner(policy(), LearnerConfig(lr=1e-3, dtype="bfloat16"))
    one, other = full.score(make_batch(7)), half.score(make_batch(7))
    assert other.logprobs_BT.dtype == torch.float32
    gap = (one.logprobs_BT - other.logprobs_BT).abs().max().item()
    assert 0 < gap < 2e-2, "the passes were not in bfloat16, or far from those in float32"
    for batch in batches():
        expected, found = full.train_step(batch), half.train_step(batch)
        assert found["learner/loss"] == pytest.approx(expected["learner/loss"], abs=2e-2)
        assert found["learner/grad_norm"] == pytest.approx(expected["learner/grad_norm"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    moments = [v for o in half._optimizers for state in o.state.values() for v in state.values()]
    assert moments
    assert all(value.dtype == torch.float32 for value in moments)
    change = flat(full.weights().tensors) - flat(dict(policy().named_parameters())).detach()
    gap_after = flat(full.weights().tensors) - flat(half.weights().tensors)
    assert gap_after.norm() < 0.25 * change.norm()


def test_recomputed_activations_change_memory_and_nothing_else() -> None:
    kept = TorchLearner(policy(), LearnerConfig(lr=1e-3))
    again = TorchLearner(policy(), LearnerConfig(lr=1e-3, activation_checkpointing=True))

    def saved_bytes(learner: TorchLearner) -> int:
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        batch = make_batch()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            learner._score(learner.model, batch.tokens_BT, batch.mask_BT)
        return total

    assert saved_bytes(again) < 0.6 * saved_bytes(kept)
    for batch in batches():
        first, second = kept.train_step(batch), again.train_step(batch)
        assert first["learner/loss"] == pytest.approx(second["learner/loss"], abs=1e-6)
    assert (flat(kept.weights().tensors) - flat(again.weights().tensors)).abs().max() < 1e-5

"""A reference in a role of its own makes the very steps that a learner with its own reference makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from roll_core.errors import CheckpointError
from roll_core.learners import LearnerConfig
from roll_core.learners.base import Learner
from roll_core.learners.fsdp import FsdpLearner
from roll_core.learners.reference import ReferencePolicy
from roll_core.learners.torch_learner import TorchLearner
from roll_core.training.roles import Roles
from tests.unit.learners.sharing import flat, make_batch, policy

torch.set_num_threads(1)
CONFIG = LearnerConfig(lr=1e-2, updates_per_batch=2, kl_coef=0.3)
GIVEN = CONFIG.model_copy(update={"reference_given": True})


def play(learner: Learner, reference: ReferencePolicy | None) -> torch.Tensor:
    for step in range(3):
        batch = make_batch(step)
        if reference is not None:
            batch.reference_logprobs_BT = reference.logprobs(batch)
        learner.train_step(batch)
    return flat(learner.weights().tensors)


def test_the_steps_are_the_same_bit_for_bit_and_the_divergence_counts() -> None:
    own = play(TorchLearner(policy(), CONFIG), None)
    model = policy()
    reference = ReferencePolicy(model, CONFIG)
    assert torch.equal(play(TorchLearner(model, GIVEN), reference), own)
    without = play(TorchLearner(policy(), LearnerConfig(lr=1e-2, updates_per_batch=2)), None)
    assert not torch.equal(without, own)


def test_a_learner_of_several_processes_takes_it_as_well() -> None:
    learners = [FsdpLearner(policy(), config, processes=2, threads=1) for config in (CONFIG, GIVEN)]
    try:
        assert torch.equal(play(learners[0], None), play(learners[1], ReferencePolicy(policy(), CONFIG)))
    finally:
        for learner in learners:
            learner.close()


def test_a_learner_that_is_promised_one_and_gets_none_says_so() -> None:
    with pytest.raises(ValueError, match="log-probs have to come with the batch"):
        TorchLearner(policy(), GIVEN).train_step(make_batch())


def test_it_is_kept_with_a_checkpoint_and_a_run_cannot_lose_it_on_the_way(tmp_path: Path) -> None:
    model = policy()
    roles = Roles(TorchLearner(model, GIVEN), reference=ReferencePolicy(model, CONFIG))
    batch = make_batch()
    assert roles.reference is not None
    before_BT = roles.reference.logprobs(batch)
    play(roles.learner, ReferencePolicy(policy(), CONFIG))
    roles.save(tmp_path)
    other = policy()
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    resumed = Roles(TorchLearner(other, GIVEN), reference=ReferencePolicy(other, CONFIG))
    assert resumed.reference is not None
    assert not torch.equal(resumed.reference.logprobs(batch), before_BT)
    resumed.load(tmp_path)
    assert torch.equal(resumed.reference.logprobs(batch), before_BT)
    with pytest.raises(CheckpointError, match=r"go on with the placement.reference the run began with, not 'learner'"):
        Roles(TorchLearner(policy(), CONFIG)).load(tmp_path)
    (tmp_path / "reference" / "reference.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"reference.safetensors cannot be read"):
        resumed.load(tmp_path)

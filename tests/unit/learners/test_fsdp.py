"""A model shared out over two processes learns what one process would have learned, and can be taken apart anew."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from benchmarks.learner_equality import MODEL, ROWS, STEPS, asyppo, compare
from benchmarks.learner_equality import make_batch as make_rows
from benchmarks.learner_equality import policy as equal_policy
from roll_core.errors import CheckpointError, LearnerDead
from roll_core.learners import LearnerConfig
from roll_core.learners.fsdp import FsdpLearner
from roll_core.learners.processes import RankGroup, rank_device
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models.lora import add_lora
from roll_core.models.qwen import CausalLM
from tests.unit.learners.sharing import Bench, batches, fail_on_one, flat, make_batch, policy

torch.set_num_threads(1)


def test_each_rank_has_a_gpu_of_its_own() -> None:
    assert [rank_device("cuda", i) for i in range(2)] == ["cuda:0", "cuda:1"]
    assert [rank_device("cuda:4", i) for i in range(2)] == ["cuda:4", "cuda:5"]
    assert [rank_device("cpu", i) for i in range(2)] == ["cpu", "cpu"]


def play(learner: Any) -> tuple[list[dict[str, float]], Tensor]:
    metrics = [learner.train_step(batch, progress=i / 10) for i, batch in enumerate(batches())]
    return metrics, flat(learner.weights().tensors)


SETTINGS: dict[str, tuple[LearnerConfig, dict[str, Any]]] = {
    "several updates, a reference, an entropy bonus": (
        LearnerConfig(
            lr=1e-3,
            updates_per_batch=2,
            epochs=2,
            micro_batch_tokens=50,
            kl_coef=0.1,
            entropy_coef=0.01,
            warmup_updates=3,
            weight_decay=0.1,
            lr_end=0.5,
        ),
        {},
    ),
    "recomputed activations, an untied head": (
        LearnerConfig(lr=1e-3, micro_batch_tokens=30, activation_checkpointing=True, head_tokens=7),
        {"tie": False},
    ),
    "muon": (LearnerConfig(lr=1e-3, optimizer="muon"), {}),
}


@pytest.mark.parametrize("loss", ["PPO", "CISPO", "AsyPPO"])
def test_five_steps_of_every_loss_give_the_torch_learners_weights(loss: str) -> None:
    plain = [make_rows(MODEL, seed, ROWS, MODEL.max_context) for seed in range(STEPS)]
    cell = compare("FSDP2, 2 processes", loss, asyppo(plain, equal_policy()) if loss == "AsyPPO" else plain)
    assert cell.equal, cell
    assert cell.changed > 5e-3  # they have learned


def test_small_micro_batches_of_two_processes_learn_like_one_big_batch() -> None:
    expected, plain = play(TorchLearner(policy(), LearnerConfig(lr=1e-3, entropy_coef=0.01, micro_batch_tokens=10_000)))
    small = LearnerConfig(lr=1e-3, entropy_coef=0.01, micro_batch_tokens=30)
    learner = FsdpLearner(policy(), small, processes=2, threads=1)
    try:
        found, shared = play(learner)
    finally:
        learner.close()
    assert (plain - shared).abs().max() < 1e-4
    for one, other in zip(expected, found, strict=True):
        assert one["learner/loss"] == pytest.approx(other["learner/loss"], abs=1e-5)
        assert one["learner/padding_share"] > other["learner/padding_share"]  # it did split them


@pytest.mark.parametrize("name", list(SETTINGS))
def test_two_processes_learn_what_one_would(name: str) -> None:
    config, shape = SETTINGS[name]
    expected, plain = play(TorchLearner(policy(**shape), config))
    learner = FsdpLearner(policy(**shape), config, processes=2, threads=1)
    try:
        scored = learner.score(make_batch(9))
        fresh = TorchLearner(policy(**shape), config).score(make_batch(9))
        assert torch.allclose(scored.logprobs_BT, fresh.logprobs_BT, atol=1e-5)
        assert torch.allclose(scored.entropy_BT, fresh.entropy_BT, atol=1e-5)
        found, shared = play(learner)
        assert learner.version == 5
    finally:
        learner.close()
    for one, other in zip(expected, found, strict=True):
        assert one["learner/loss"] == pytest.approx(other["learner/loss"], abs=1e-5)
        for key in one.keys() - {"learner/step_s", "learner/padding_share"}:
            assert one[key] == pytest.approx(other[key], abs=1e-4, rel=1e-3), key
    assert (plain - shared).abs().max() < 1e-4
    assert (plain - flat(TorchLearner(policy(**shape), config).weights().tensors)).abs().max() > 1e-3  # it did learn


def test_adapters_are_shared_out_too_and_leave_merged_and_are_saved(tmp_path: Path) -> None:
    config = LearnerConfig(lr=1e-2)
    expected, plain = play(TorchLearner(add_lora(policy(), 2, 4.0, seed=3), config))
    learner = FsdpLearner(add_lora(policy(), 2, 4.0, seed=3), config, processes=2, threads=1)
    try:
        found, shared = play(learner)
        learner.save(tmp_path)
    finally:
        learner.close()
    alone = FsdpLearner(add_lora(policy(), 2, 4.0, seed=99), config, processes=1, threads=1)
    try:
        alone.load(tmp_path)
        assert torch.equal(flat(alone.weights().tensors), shared)
    finally:
        alone.close()
    assert (plain - shared).abs().max() < 1e-4
    assert found[-1]["learner/loss"] == pytest.approx(expected[-1]["learner/loss"], abs=1e-5)


def test_bfloat16_passes_stay_near_those_of_float32_and_parameters_are_float32() -> None:
    expected, plain = play(TorchLearner(policy(), LearnerConfig(lr=1e-3)))
    learner = FsdpLearner(policy(), LearnerConfig(lr=1e-3, dtype="bfloat16"), processes=2, threads=1)
    try:
        found, shared = play(learner)
    finally:
        learner.close()
    assert shared.dtype == torch.float32
    assert 1e-7 < (plain - shared).abs().max() < 2e-2
    assert found[0]["learner/loss"] == pytest.approx(expected[0]["learner/loss"], abs=2e-2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, list[dict[str, float]], Tensor]]:
    """Checkpoints of two processes before the first and after the second of five steps, and how it went on."""
    folder = tmp_path_factory.mktemp("shared")
    learner = FsdpLearner(policy(), RESUMED, processes=2, threads=1)
    try:
        learner.save(folder / "before")
        for batch in batches()[:2]:
            learner.train_step(batch)
        learner.save(folder / "between")
        metrics = [learner.train_step(batch) for batch in batches()[2:]]
        yield folder / "before", folder / "between", metrics, flat(learner.weights().tensors)
    finally:
        learner.close()


RESUMED = LearnerConfig(lr=1e-3, updates_per_batch=2, kl_coef=0.1, warmup_updates=4)


def test_a_checkpoint_goes_from_two_processes_to_one_and_back(
    saved: tuple[Path, Path, list[dict[str, float]], Tensor], tmp_path: Path
) -> None:
    _, between, expected, after = saved
    source = between
    for processes in (1, 2):
        learner = FsdpLearner(CausalLM(policy().config, seed=99), RESUMED, processes=processes, threads=1)
        try:
            learner.load(source)
            if processes == 1:
                learner.save(source := tmp_path / "one")
                continue
            found = [learner.train_step(batch) for batch in batches()[2:]]
            assert torch.equal(flat(learner.weights().tensors), after)  # nothing was lost on the way
            assert [one["learner/loss"] for one in found] == [one["learner/loss"] for one in expected]
        finally:
            learner.close()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_two_processes_saved_any_number_goes_on_from(
    saved: tuple[Path, Path, list[dict[str, float]], Tensor], processes: int
) -> None:
    before, between, expected, after = saved
    learner = FsdpLearner(CausalLM(policy().config, seed=99), RESUMED, processes=processes, threads=1)
    try:
        learner.load(between)
        assert learner.version == 2
        found = [learner.train_step(batch) for batch in batches()[2:]]
        if processes == 2:  # the same sums in the same order
            assert torch.equal(flat(learner.weights().tensors), after)
        assert (flat(learner.weights().tensors) - after).abs().max() < 1e-4
        for one, other in zip(expected, found, strict=True):
            assert one["learner/loss"] == pytest.approx(other["learner/loss"], abs=1e-5)
            assert one["learner/lr"] == other["learner/lr"]
        learner.load(before)
        assert torch.equal(flat(learner.weights().tensors), flat(dict(policy().named_parameters())).detach())
    finally:
        learner.close()


def test_a_checkpoint_of_another_model_is_refused(
    saved: tuple[Path, Path, list[dict[str, float]], Tensor], tmp_path: Path
) -> None:
    for folder, shape in ((saved[1], {"layers": 1}), (tmp_path / "nothing", {})):
        learner = FsdpLearner(policy(**shape), RESUMED, processes=1, threads=1)
        try:
            with pytest.raises(CheckpointError, match="cannot be loaded into this learner"):
                learner.load(folder)
        finally:
            learner.close()


def test_a_rank_that_raises_or_is_killed_ends_all_and_says_so(tmp_path: Path) -> None:
    group = RankGroup(Bench, 2, threads=1)
    processes = [psutil.Process(pid) for pid in group.pids]
    with pytest.raises(LearnerDead, match=r"Rank 1 .* failed in 'run': .*this rank has had enough"):
        group.call("run", fail_on_one, tmp_path)
    assert not any(process.is_running() for process in processes)
    with pytest.raises(LearnerDead, match="had enough"):  # and stays dead
        group.call("run", fail_on_one, tmp_path)

    learner = FsdpLearner(policy(), LearnerConfig(), processes=2, threads=1)
    os.kill(learner.pids[0], signal.SIGKILL)
    with pytest.raises(LearnerDead, match=r"Rank \d of the learner .* 'train_step'"):
        learner.train_step(make_batch())
    learner.close()

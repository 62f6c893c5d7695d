"""Megatron learns what the plain torch learner does, however it is cut: real processes, gloo, no GPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.learner_equality import asyppo
from roll_core.cluster.memory import learner_need
from roll_core.config import load_recipe
from roll_core.config.load import recipe_from_data
from roll_core.errors import CheckpointError, LearnerDead, RecipeError
from roll_core.learners import LearnerConfig
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.learner import MegatronLearner, missing_package
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, save_hf
from roll_core.models.checkpoint import load_tensors
from roll_core.types import TrainBatch
from tests.integration.learners.several import CONFIGS, MODELS, Case, Learners, policy, weighed
from tests.unit.learners.sharing import flat

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.skipif(bool(missing_package()), reason=missing_package() or "-"),
    pytest.mark.xdist_group("megatron"),  # several processes each: one after the other
]
LAYOUTS = {
    "one process": Layout(),
    "tensor 2": Layout(tensor=2),
    "tensor 2, sequence": Layout(tensor=2, sequence=True),
    "pipeline 2": Layout(pipeline=2),
    "data 2": Layout(data=2),
    "tensor 2, data 2": Layout(tensor=2, data=2),
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def learners(request: pytest.FixtureRequest) -> Iterator[Learners]:
    """All learners of one layout share its processes."""
    found = Learners(LAYOUTS[request.param])
    yield found
    found.close()


def compare(batches: list[TrainBatch], torch_learner: TorchLearner, learners: Learners, name: str) -> None:
    for number, batch in enumerate(batches):
        progress = number / len(batches)
        expected = torch_learner.train_step(batch, progress=progress)
        found = learners.tell(name, "train_step", batch, progress)[0]
        assert found.keys() - {"learner/padding_spared"} == expected.keys()
        assert found["learner/loss"] == pytest.approx(expected["learner/loss"], abs=1e-5)
        for metric, value in expected.items():
            if metric not in ("learner/step_s", "learner/padding_share"):
                assert found[metric] == pytest.approx(value, rel=1e-3, abs=1e-5), metric


def batches_of(config: str) -> list[TrainBatch]:
    batches = [weighed(seed) for seed in range(5)]
    return asyppo(batches, policy()) if config == "asyppo" else batches


@pytest.mark.parametrize(
    ("config", "sharded"), [("ppo", False), ("cispo", True), ("asyppo", True)], ids=["ppo", "cispo", "asyppo"]
)
def test_five_steps_give_the_torch_learners_weights(learners: Learners, config: str, sharded: bool) -> None:
    plain = TorchLearner(policy(), CONFIGS[config])
    name = learners.new(Case("qwen3", config, sharded))
    compare(batches_of(config), plain, learners, name)
    expected, found = plain.weights().tensors, learners.weights(name)
    assert found.keys() == expected.keys()
    assert (flat(found) - flat(expected)).abs().max() < 1e-4
    assert (flat(expected) - flat(dict(policy().named_parameters()))).abs().max() > 5e-3  # they have learned


def test_rows_padded_or_packed_give_the_same(learners: Learners) -> None:
    padded, packed = learners.new(Case("qwen3", "ppo", packing=False)), learners.new(Case("qwen3", "ppo"))
    for batch in batches_of("ppo"):
        one, other = (learners.tell(name, "train_step", batch, 0.0)[0] for name in (padded, packed))
        assert one["learner/loss"] == pytest.approx(other["learner/loss"], abs=1e-5)
        assert one["learner/padding_share"] == pytest.approx(other["learner/padding_spared"], abs=0.02)
        assert one["learner/padding_share"] > 0
        assert other["learner/padding_share"] == 0
    assert (flat(learners.weights(padded)) - flat(learners.weights(packed))).abs().max() < 1e-4


def test_bfloat16_stays_near_float32_and_keeps_float32(learners: Learners, tmp_path: Path) -> None:
    plain, case = TorchLearner(policy(), CONFIGS["ppo"]), Case("qwen3", "bfloat16", distributed_optimizer=True)
    name = learners.new(case)
    before = flat(learners.weights(name))
    assert torch.equal(before, flat(plain.weights().tensors))  # though the model has them rounded
    for batch in batches_of("ppo"):
        expected, found = plain.train_step(batch), learners.tell(name, "train_step", batch, 0.0)[0]
        assert found["learner/loss"] == pytest.approx(expected["learner/loss"], abs=2e-2)
    after, change = flat(learners.weights(name)), flat(plain.weights().tensors) - before
    assert after.dtype == torch.float32
    assert not torch.equal(after, after.bfloat16().float())
    assert 1e-7 < (after - before - change).norm() < 0.25 * change.norm()
    learners.tell(name, "save", tmp_path)
    other = learners.new(Case("qwen3", "bfloat16"))
    learners.tell(other, "load", tmp_path)
    assert torch.equal(flat(learners.weights(other)), after)
    for one in (name, other):
        learners.tell(one, "train_step", weighed(9), 0.0)
    assert torch.equal(flat(learners.weights(other)), flat(learners.weights(name)))


@pytest.mark.parametrize("sharded", [False, True], ids=["whole optimizer", "distributed optimizer"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_memory_that_is_planned_is_what_a_process_holds(learners: Learners, dtype: str, sharded: bool) -> None:
    layout = learners.layout
    name = learners.new(Case("qwen3", {"float32": "ppo"}.get(dtype, dtype), distributed_optimizer=sharded))
    learners.tell(name, "train_step", weighed(0), 0.0)
    held = learners.held_bytes(name)
    data = load_recipe("countdown-tiny").model_dump(mode="json")
    data["learner"] |= {
        "kind": "megatron", "optimizer": "adamw", "dtype": dtype, "processes": layout.world,
        "tensor_parallel": layout.tensor, "pipeline_parallel": layout.pipeline,
        "sequence_parallel": layout.sequence, "distributed_optimizer": sharded,
    }  # fmt: skip
    need = learner_need(recipe_from_data(data, "test"), MODELS["qwen3"]).parts
    for part in ("parameters", "gradients"):
        assert max(one[part] for one in held) == need[part], part
    replicas = [range(first, first + layout.tensor * layout.data, layout.tensor) for first in _firsts(layout)]
    for part in ("float32 parameters", "moments"):  # of replicas together: Megatron's cuts are not quite even
        most = max(sum(held[rank][part] for rank in ranks) for ranks in replicas)
        assert 0 <= need[part] * layout.data - most < 8 * layout.data, part


def _firsts(layout: Layout) -> list[int]:
    """The first replica's ranks: tensor ranks follow each other, then replicas, then stages."""
    per_stage = layout.tensor * layout.data
    return [stage * per_stage + rank for stage in range(layout.pipeline) for rank in range(layout.tensor)]


@pytest.mark.parametrize("model", list(MODELS))
def test_every_family_is_the_same_function(learners: Learners, model: str, tmp_path: Path) -> None:
    plain, name = TorchLearner(policy(model), CONFIGS["asyppo"]), learners.new(Case(model, "asyppo"))
    there_and_back = CausalLM(MODELS[model], seed=99)
    load_tensors(there_and_back, learners.weights(name))
    for folder, one in (("before", policy(model)), ("after", there_and_back)):
        save_hf(one, tmp_path / folder)
    before, after = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("before", "after"))
    assert before == after
    expected, found = plain.score(weighed(7)), learners.tell(name, "score", weighed(7))
    assert found[1:] == [None] * (len(found) - 1)
    assert torch.allclose(found[0].logprobs_BT, expected.logprobs_BT, atol=1e-5)
    assert torch.allclose(found[0].entropy_BT, expected.entropy_BT, atol=1e-5)
    assert torch.allclose(found[0].reference_logprobs_BT, expected.reference_logprobs_BT, atol=1e-5)
    compare([weighed(8)], plain, learners, name)
    assert (flat(learners.weights(name)) - flat(plain.weights().tensors)).abs().max() < 1e-4


@pytest.mark.parametrize("sharded", [False, True], ids=["whole optimizer", "distributed optimizer"])
def test_a_loaded_learner_goes_on_bit_for_bit(learners: Learners, tmp_path: Path, sharded: bool) -> None:
    case = Case("qwen3", "asyppo", sharded)
    name = learners.new(case)
    for seed in range(2):
        learners.tell(name, "train_step", weighed(seed), 0.0)
    learners.tell(name, "save", tmp_path)
    learners.tell(name, "train_step", weighed(3), 0.5)
    other = learners.new(case)
    assert set(learners.tell(other, "load", tmp_path)) == {2}
    learners.tell(other, "train_step", weighed(3), 0.5)
    assert torch.equal(flat(learners.weights(other)), flat(learners.weights(name)))


@pytest.mark.parametrize("sharded", [False, True], ids=["whole optimizer", "distributed optimizer"])
def test_checkpoints_pass_between_megatron_and_torch(learners: Learners, tmp_path: Path, sharded: bool) -> None:
    plain = TorchLearner(policy(), CONFIGS["asyppo"])
    for seed in range(2):
        plain.train_step(weighed(seed))
    plain.save(tmp_path / "torch")
    name = learners.new(Case("qwen3", "asyppo", sharded))
    learners.tell(name, "load", tmp_path / "torch")
    assert torch.equal(flat(learners.weights(name)), flat(plain.weights().tensors))
    compare([weighed(3)], plain, learners, name)
    learners.tell(name, "save", tmp_path / "megatron")
    other = TorchLearner(policy(), CONFIGS["asyppo"])
    other.load(tmp_path / "megatron")
    assert other.version == plain.version
    saved, expected = (learner._optimizers[0].state_dict() for learner in (other, plain))
    assert saved["param_groups"] == expected["param_groups"]
    for index, moments in expected["state"].items():
        assert saved["state"][index].keys() == moments.keys()
        for key, value in moments.items():
            assert torch.allclose(saved["state"][index][key], value, rtol=1e-3, atol=1e-6), key
    compare([weighed(4)], other, learners, name)


def test_a_gradient_that_is_not_finite_is_skipped_everywhere(learners: Learners) -> None:
    name = learners.new(Case("qwen3", "ppo"))
    batch = weighed(0)
    batch.advantages_BT[0] = float("inf") * batch.mask_BT[0].clamp(min=1)
    before = flat(learners.weights(name))
    metrics = learners.tell(name, "train_step", batch, 0.0)[0]
    assert metrics["learner/skipped_updates"] >= 1
    after = flat(learners.weights(name))
    assert after.isfinite().all()
    assert metrics["learner/skipped_updates"] == 2 or not torch.equal(before, after)


def test_a_batch_without_advantages_changes_no_weights_but_the_decayed(learners: Learners) -> None:
    name = learners.new(Case("qwen3", "ppo"))
    batch = weighed(0)
    batch.advantages_BT.zero_()
    assert learners.tell(name, "train_step", batch, 0.0)[0]["learner/grad_norm"] == 0
    learners.tell(name, "skip_step")
    assert learners.tell(name, "train_step", weighed(1), 0.0)[0]["learner/token_staleness"] == 2


@pytest.fixture(scope="module")
def learner() -> Iterator[MegatronLearner]:
    found = MegatronLearner(policy(), CONFIGS["ppo"], layout=Layout(tensor=2), threads=1)
    yield found
    found.close()


def test_the_learner_hands_weights_on_and_refuses_another_models_checkpoint(
    learner: MegatronLearner, tmp_path: Path
) -> None:
    learner.skip_step()
    weights = learner.weights()
    assert (weights.version, learner.version) == (1, 1)
    assert torch.equal(flat(weights.tensors), flat(dict(policy().named_parameters())))
    assert learner.score(weighed(0)).reference_logprobs_BT is None
    assert learner.train_step(weighed(0))["learner/updates"] == 2
    TorchLearner(policy("llama")).save(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be loaded into this learner"):
        learner.load(tmp_path)
    assert not any(psutil.pid_exists(pid) for pid in learner.pids)


def test_one_death_is_the_death_of_all() -> None:
    learner = MegatronLearner(policy(), CONFIGS["ppo"], layout=Layout(pipeline=2), threads=1)
    try:
        os.kill(learner.pids[1], signal.SIGKILL)
        with pytest.raises(LearnerDead, match="Rank 1"):
            learner.train_step(weighed(0))
        assert not any(psutil.pid_exists(pid) for pid in learner.pids)
    finally:
        learner.close()


@pytest.mark.parametrize(
    ("config", "layout", "words"),
    [
        ({"optimizer": "muon"}, Layout(), "has 'adamw' only"),
        ({}, Layout(pipeline=3), "take one of"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_starts(config: dict, layout: Layout, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        MegatronLearner(policy(), LearnerConfig(**config), layout=layout)

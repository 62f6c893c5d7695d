"""Who goes where is decided from the recipe alone, whole and without overlap; the memory it takes is near what is."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roll_core.cluster.memory import (
    activation_bytes,
    engine_need,
    learner_need,
    parameter_count,
    stage_count,
    trained_count,
)
from roll_core.cluster.placement import at_seat, describe, make_plan
from roll_core.config import Recipe, load_recipe
from roll_core.config.load import recipe_from_data
from roll_core.errors import RecipeError
from roll_core.learners import LearnerConfig
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig
from roll_core.models.lora import add_lora
from roll_core.models.qwen import parameter_shapes
from tests.unit.learners.sharing import TINY, make_batch, policy

torch.set_num_threads(1)
_PLANNED = """
import sys
from roll_core.cluster.placement import make_plan
from roll_core.cluster.shape import expected_shape
from roll_core.config import load_recipe
recipe = load_recipe("countdown-tiny")
print(make_plan(recipe, expected_shape(recipe)).seats[0].role, "torch._dynamo" in sys.modules)
"""
BASE = load_recipe("countdown-tiny").model_dump(mode="json")
SMALL = ModelConfig(vocab=280, hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate=96, max_context=160)


def recipe(**sections: dict[str, Any]) -> Recipe:
    data = copy.deepcopy(BASE)
    for name, values in sections.items():
        data[name] |= values
    return recipe_from_data(data, "test")


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    cuda, ray, here = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    learner = draw(st.sampled_from(["apart", "colocated", "here"]))
    followers = {role: draw(st.sampled_from(["here", "colocated", "apart"])) for role in ("critics", "actor_attn")}
    followers["reference"] = draw(st.sampled_from(["learner", "here", "colocated", "apart"]))
    single = "colocated" in (learner, *followers.values())
    processes = 1 if single else draw(st.integers(1, 4))
    return recipe(
        engine={
            "count": draw(st.integers(1, 5)),
            "device": "cuda:{i}" if cuda else "cpu",
            "kind": "vllm" if cuda else "torch",
            "tensor_parallel": 1 if single or not (cuda and ray) or here else draw(st.integers(1, 4)),
        },
        learner={
            "kind": "fsdp" if processes > 1 else "torch",
            "processes": processes,
            "device": "cuda" if cuda else "cpu",
        },
        placement={
            "ray": "auto" if ray else "",
            "engines": "here" if here else draw(st.sampled_from(["spread", "packed"])),
            "learner": learner,
            "cpus": draw(st.integers(1, 4)),
            **followers,
        },
        critic={"count": draw(st.integers(0, 2))},
        algorithm={
            "credit": ["rhythm"] if draw(st.booleans()) else [],
            "kl_coef": 0.1 if followers["reference"] != "learner" else 0.0,
        },
    )


@given(recipes())
def test_every_role_has_one_seat_and_bundles_hold_exactly_what_sits_in_them(given_recipe: Recipe) -> None:
    plan = make_plan(given_recipe, SMALL)
    roles = [seat.role for seat in plan.seats]
    expected = ["learner", *(f"engine {i}" for i in range(given_recipe.engine.count))]
    placement = given_recipe.placement
    followers = [
        ("critics", placement.critics, given_recipe.critic.count > 0),
        ("actor_attn", placement.actor_attn, "rhythm" in given_recipe.algorithm.credit),
        ("reference", placement.reference, placement.reference != "learner"),
    ]
    for role, where, wanted in followers:
        seat = next((seat for seat in plan.seats if seat.role == role), None)
        if seat is None:
            assert not wanted or (role == "actor_attn" and plan.away("learner") is None), "or it is the learner's own"
            continue
        expected.append(role)
        assert wanted
        assert (seat.bundle is not None) == (
            bool(placement.ray) and (where == "apart" or (where == "colocated" and plan.away("learner") is not None))
        )
        if where == "colocated":
            assert seat.bundle == plan.seat("learner").bundle
        elif seat.bundle is not None:
            assert [other.role for other in plan.seats if other.bundle == seat.bundle] == [role]
    assert roles == expected
    used = sorted({seat.bundle for seat in plan.seats if seat.bundle is not None})
    assert used == list(range(len(plan.bundles)))
    for number, bundle in enumerate(plan.bundles):
        inside = [seat for seat in plan.seats if seat.bundle == number]
        assert bundle["CPU"] == sum(seat.cpus for seat in inside)
        assert bundle.get("GPU", 0) == pytest.approx(sum(seat.gpus for seat in inside))
        assert bundle.get("GPU", 0) == int(bundle.get("GPU", 0)), "whole GPUs, together"
    for seat in plan.seats:
        if seat.bundle is None:
            assert (seat.cpus, seat.gpus) == (0, 0)
        else:
            assert seat.cpus >= 1
            there = at_seat(given_recipe, seat)
            assert {*there.engine.devices, there.learner.device, there.critic.device} <= {"cpu", "cuda:0"}
    if not given_recipe.placement.ray:
        assert plan.bundles == ()
    lines = describe(plan, SMALL)
    assert all(any(line.startswith(f"{role}:") for line in lines) for role in roles)


def test_a_colocated_learner_shares_the_gpu_of_the_first_engine() -> None:
    wanted = recipe(
        engine={"count": 2, "device": "cuda:{i}"},
        learner={"device": "cuda"},
        placement={"ray": "auto", "learner": "colocated"},
    )
    plan = make_plan(wanted, SMALL)
    assert plan.seat("learner").bundle == plan.seat("engine 0").bundle == 0
    assert plan.bundles == ({"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0})
    together = plan.seat("learner").need.total_bytes + plan.seat("engine 0").need.total_bytes
    assert plan.device_bytes()[(0, "cuda:0")] == together
    assert any("learner, engine 0" in line for line in describe(plan, SMALL))


def test_all_of_a_step_may_share_one_gpu_and_the_plan_says_what_that_takes() -> None:
    wanted = recipe(
        engine={"device": "cuda"},
        learner={"device": "cuda"},
        critic={"count": 2},
        algorithm={"credit": ["rhythm"], "kl_coef": 0.1},
        placement={
            "ray": "auto", "learner": "colocated", "critics": "colocated", "actor_attn": "colocated",
            "reference": "colocated",
        },
    )  # fmt: skip
    plan = make_plan(wanted, SMALL)
    assert plan.bundles == ({"CPU": 5.0, "GPU": 1.0},)
    assert {seat.gpus for seat in plan.seats} == {0.2}
    assert "reference" not in plan.seat("learner").need.parts, "it is a role of its own"
    assert plan.seat("reference").need.total_bytes == 4 * parameter_count(SMALL)
    assert any(
        line.startswith("cuda:0 on Ray bundle 0: learner, engine 0, critics, actor_attn, reference; about")
        for line in describe(plan, SMALL)
    )


@pytest.mark.parametrize("role", ["critics", "actor_attn"])
def test_what_cannot_share_the_learner_s_gpus_is_refused(role: str) -> None:
    several = {"kind": "fsdp", "processes": 2, "device": "cuda"}
    with pytest.raises(RecipeError, match=rf"placement.{role} 'colocated' .* use 'apart' or 'here'"):
        recipe(learner=several, placement={"ray": "auto", role: "colocated"})
    with pytest.raises(
        RecipeError, match=r"placement.reference 'apart' is for the policy of algorithm.kl_coef, which is 0"
    ):
        recipe(placement={"reference": "apart"})


def test_engines_that_share_gpus_among_their_ranks_have_their_own() -> None:
    with pytest.raises(RecipeError, match=r"tensor_parallel=2 .* found cuda:0, cuda:1; list devices that far apart"):
        recipe(engine={"kind": "vllm", "count": 2, "device": "cuda:{i}", "tensor_parallel": 2})
    apart = {"kind": "vllm", "count": 2, "device": ["cuda:2", "cuda:0"], "tensor_parallel": 2}
    assert make_plan(recipe(engine=apart), SMALL).seat("engine 0").devices == ("cuda:2", "cuda:3")


def test_what_cannot_share_a_gpu_is_refused() -> None:
    with pytest.raises(RecipeError, match="'colocated' shares one GPU"):
        recipe(learner={"kind": "fsdp", "processes": 2}, placement={"ray": "auto", "learner": "colocated"})


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.sampled_from(["qwen3", "qwen2", "llama"]),
    st.integers(0, 3),
)
def test_parameters_and_those_that_are_trained_are_counted_exactly(
    layers: int, heads: int, group: int, tie: bool, family: str, rank: int
) -> None:
    config = ModelConfig(
        31, 16, layers, heads * group, heads, 8, 24, tie=tie, qk_norm=family == "qwen3", qkv_bias=family == "qwen2"
    )
    model = CausalLM(config)
    real = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert list(parameter_shapes(config).items()) == list(real.items()), "names, shapes and order"
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())
    if rank:
        add_lora(model, rank, 1.0)
    assert trained_count(config, rank) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_to_say_who_goes_where_torch_s_compiler_is_not_loaded() -> None:
    """It takes two seconds, and nobody here compiles."""
    told = subprocess.run([sys.executable, "-c", _PLANNED], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.split() == ["learner", "False"]


def test_parameters_gradients_and_moments_are_what_a_learner_holds() -> None:
    learner = TorchLearner(policy(), LearnerConfig())
    gradients: list[int] = []
    learner._optimizers[0].register_step_pre_hook(
        lambda opt, *_: gradients.append(
            sum(p.grad.nbytes for g in opt.param_groups for p in g["params"] if p.grad is not None)
        )
    )
    learner.train_step(make_batch())
    state = learner._optimizers[0].state.values()
    moments = sum(v.nbytes for s in state for name, v in s.items() if name != "step")
    need = learner_need(recipe(learner={"optimizer": "adamw"}), TINY).parts
    assert need["parameters"] == sum(p.nbytes for p in learner.model.parameters())
    assert need["gradients"] == gradients[0]
    assert need["moments"] == moments


def test_activations_are_within_a_half_of_what_a_pass_keeps_and_fewer_when_recomputed() -> None:
    rows, width = 8, SMALL.max_context
    learner = TorchLearner(CausalLM(SMALL), LearnerConfig())
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in learner.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.randint(0, SMALL.vocab, (rows, width))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        scored = learner._score(learner.model, tokens, torch.ones(rows, width))
    expected = activation_bytes(recipe(learner={"micro_batch_tokens": rows * width}), SMALL)
    assert scored.logprobs_BT.requires_grad
    assert 0.66 < expected / sum(kept.values()) < 1.5, (expected, sum(kept.values()))
    chosen = {"micro_batch_tokens": rows * width, "activation_checkpointing": True}
    assert activation_bytes(recipe(learner=chosen), SMALL) < 0.8 * expected


def test_shares_of_the_learner_and_the_cache_of_an_engine() -> None:
    one = learner_need(recipe(), SMALL).parts
    four = learner_need(recipe(learner={"kind": "fsdp", "processes": 4}), SMALL).parts
    for name in ("parameters", "gradients", "moments"):
        assert four[name] == one[name] // 4
    need = engine_need(recipe(engine={"slots": 5}), SMALL).parts
    assert need["KV cache"] == 5 * 160 * 3 * 2 * 2 * 16 * 4
    assert (
        engine_need(recipe(engine={"slots": 5, "dtype": "bfloat16"}), SMALL).parts["KV cache"] * 2 == need["KV cache"]
    )


CUT = ModelConfig(
    vocab=320, hidden=64, layers=4, heads=4, kv_heads=2, head_dim=16, intermediate=96, max_context=160, tie=False
)
# Two of CUT's layers by tensor 2: half of (64·64·2 + 64·32·2 + 3·64·96) and norms of 2·64 + 2·16; half of the head's
# 320·64; the last norm of 64. The first stage has no last norm.
LAST_STAGE = 2 * (15_360 + 160) + 10_240 + 64
MEGATRON: dict[str, Any] = {"kind": "megatron", "optimizer": "adamw"}


@pytest.mark.parametrize(
    ("dtype", "sharded", "each"),
    [("float32", False, 16), ("float32", True, 8 + 8 // 2), ("bfloat16", False, 18), ("bfloat16", True, 6 + 12 // 2)],
)
def test_megatron_holds_as_many_bytes_a_parameter_as_its_own_guide_says(dtype: str, sharded: bool, each: int) -> None:
    cut = {"processes": 8, "tensor_parallel": 2, "pipeline_parallel": 2, "distributed_optimizer": sharded}
    need = learner_need(recipe(learner={**MEGATRON, "dtype": dtype, **cut}), CUT).parts
    assert sum(need[name] for name in ("parameters", "gradients", "float32 parameters", "moments")) == each * LAST_STAGE
    assert need["gradients"] == 4 * LAST_STAGE
    assert need["parameters"] == (2 if dtype == "bfloat16" else 4) * LAST_STAGE


def test_under_megatron_a_tied_head_is_a_copy_in_the_last_stage_and_a_reference_has_the_passes_precision() -> None:
    tied = dataclasses.replace(CUT, tie=True)
    assert stage_count(tied, Layout(tensor=2, pipeline=2)) == LAST_STAGE
    assert stage_count(tied, Layout(tensor=2)) == 4 * 15_520 + 10_240 + 64
    wanted = recipe(learner={**MEGATRON, "dtype": "bfloat16"}, algorithm={"kl_coef": 0.1})
    assert learner_need(wanted, CUT).parts["reference"] == 2 * parameter_count(CUT)


def test_tensor_ranks_share_activations_and_with_sequence_parallelism_all_of_them() -> None:
    def activations(**cut: Any) -> int:
        return learner_need(recipe(learner={**MEGATRON, **cut}), CUT).parts["activations"]

    tensor = {"processes": 2, "tensor_parallel": 2}
    assert activations(**tensor, sequence_parallel=True) * 2 == activations()
    assert activations() // 2 < activations(**tensor) < activations()

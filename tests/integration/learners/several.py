"""Several learners in the same processes: starting those takes longer than what the tests do with them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from roll_core.learners import LearnerConfig
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.learner import make_rank
from roll_core.learners.megatron.spec import Spec
from roll_core.learners.processes import Rank, RankGroup
from roll_core.models import CausalLM
from roll_core.models.qwen import RopeScaling
from roll_core.types import TrainBatch
from tests.unit.learners.sharing import TINY, make_batch

COMMON = {"lr": 3e-3, "updates_per_batch": 2, "micro_batch_tokens": 48, "weight_decay": 0.1, "warmup_updates": 3}
CONFIGS = {
    "ppo": LearnerConfig(loss="ppo", **COMMON),
    "cispo": LearnerConfig(loss="cispo", lr_end=0.1, activation_checkpointing=True, **COMMON),
    # AsyPPO: its batches are `asyppo`'s. With a reference beside.
    "asyppo": LearnerConfig(loss="ppo", entropy_coef=0.05, kl_coef=0.1, temperature=0.8, **COMMON),
    "bfloat16": LearnerConfig(loss="ppo", dtype="bfloat16", **COMMON),
}
MODELS = {
    "qwen3": TINY,
    "qwen2": replace(TINY, qk_norm=False, qkv_bias=True, layers=4),
    "llama": replace(TINY, qk_norm=False, tie=False, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
}


def policy(model: str = "qwen3") -> CausalLM:
    """Biases and norms that are not what a new model has, so that losing them would show."""
    found = CausalLM(MODELS[model], seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return found


def weighed(seed: int) -> TrainBatch:
    batch = make_batch(seed)
    g = torch.Generator().manual_seed(seed)
    batch.entropy_weight_BT = (torch.rand(batch.mask_BT.shape, generator=g) > 0.3).float()
    return batch


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    config: str
    distributed_optimizer: bool = False
    packing: bool = True


class Several:
    """In a rank's process."""

    def __init__(self, layout: Layout, folder: Path, rank: Rank) -> None:
        self._layout, self._folder, self._rank = layout, folder, rank
        self._held: dict[str, Any] = {}

    def make(self, name: str, case: Case) -> None:
        config = CONFIGS[case.config]
        spec = Spec(MODELS[case.model], config, self._layout, case.distributed_optimizer, case.packing)
        self._held[name] = make_rank(spec, self._folder / f"{case.model}.safetensors", self._rank)

    def tell(self, name: str, method: str, *args: Any) -> Any:
        return getattr(self._held[name], method)(*args)

    def held_bytes(self, name: str) -> dict[str, int]:
        """What this process holds of a learner that has taken a step, but for padding of Megatron's buffers."""
        learner = self._held[name]
        parameters = list(learner.model.parameters())
        wrapped = [w.optimizer for w in learner.optimizer.chained_optimizers]
        kept = [p for o in wrapped for group in o.param_groups for p in group["params"]]
        states = [state for o in wrapped for state in o.state.values()]
        return {
            "parameters": sum(p.nbytes for p in parameters),
            "gradients": sum(p.main_grad.nbytes for p in parameters),
            "float32 parameters": sum(p.nbytes for p in kept if p.dtype != parameters[0].dtype),
            "moments": sum(state[key].nbytes for state in states for key in ("exp_avg", "exp_avg_sq")),
        }


def make_several(layout: Layout, folder: Path, rank: Rank) -> Several:
    return Several(layout, folder, rank)


class Learners:
    """In the test's process."""

    def __init__(self, layout: Layout) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="rock-test-")
        self._folder = Path(self._temporary.name)
        for model in MODELS:
            save_file(
                {n: p.detach() for n, p in policy(model).named_parameters()}, self._folder / f"{model}.safetensors"
            )
        self._group = RankGroup(partial(make_several, layout, self._folder), layout.world, threads=1)
        self.layout = layout
        self._count = 0

    def new(self, case: Case) -> str:
        self._count += 1
        self._group.call("make", name := f"{self._count}", case)
        return name

    def tell(self, name: str, method: str, *args: Any) -> list[Any]:
        return self._group.call("tell", name, method, *args)

    def held_bytes(self, name: str) -> list[dict[str, int]]:
        found: list[dict[str, int]] = self._group.call("held_bytes", name)
        return found

    def weights(self, name: str) -> Mapping[str, Tensor]:
        self.tell(name, "write_weights", self._folder / "weights.safetensors")
        return load_file(self._folder / "weights.safetensors")

    def close(self) -> None:
        self._group.close()
        self._temporary.cleanup()

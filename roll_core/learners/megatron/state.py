"""A Megatron learner's parameters and moments, gathered under Hugging Face's names and dealt out again.

Invariants: a checkpoint is ``learner.pt`` of :class:`~roll_core.learners.torch_learner.TorchLearner`, to the key: it
says nothing of the layout, so that another layout, or the torch learner, goes on from it, and it goes on from theirs;
in the same layout that is bit for bit.

The distributed optimizer's own loading takes ``step`` from Apex's kind of parameter group, where torch's AdamW keeps it
with each parameter; so its shards are read and written here by the ranges it tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

from roll_core.errors import CheckpointError
from roll_core.learners.config import LearnerConfig
from roll_core.learners.megatron.mapping import Entry, entries, join, to_megatron
from roll_core.learners.megatron.spec import Spec
from roll_core.learners.optimizers import adamw
from roll_core.learners.saving import replacing
from roll_core.models.qwen import parameter_shapes

if TYPE_CHECKING:
    from roll_core.learners.megatron.rank import RankLearner

FILE = "learner.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Shards:
    """This rank's place in the layout: which part of every tensor it has."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        self.stage = parallel_state.get_pipeline_model_parallel_rank()

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From whole tensors under Hugging Face's names to this rank's under Megatron's."""
        return to_megatron(tensors, self.spec.model, self.spec.layout, tensor_rank=self.tensor_rank, stage=self.stage)

    @torch.no_grad()
    def fill(self, model: GPTModel, tensors: Mapping[str, Tensor]) -> None:
        """Set every parameter. Raises CheckpointError when one is missing or misshapen."""
        given, own = self.local(tensors), self.parameters(model)
        if given.keys() != own.keys():
            raise CheckpointError(f"weights do not fit the model: {sorted(given.keys() ^ own.keys())[:5]}")
        for name, parameter in own.items():
            if parameter.shape != given[name].shape:
                raise CheckpointError(f"{name} is {tuple(given[name].shape)}, expected {tuple(parameter.shape)}")
            parameter.copy_(given[name])

    def parameters(self, model: GPTModel) -> dict[str, nn.Parameter]:
        return dict(model.named_parameters())

    @torch.no_grad()
    def gather(self, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors under Hugging Face's names, on the CPU of rank 0; nothing on the others. Every rank calls it,
        and no more than one tensor is whole on a device at a time."""
        if parallel_state.get_data_parallel_rank():
            return {}  # replicas have the same
        shapes, whole = parameter_shapes(self.spec.model), {}
        for entry in entries(self.spec.model, self.spec.layout):
            for name, tensor in zip(entry.sources, self._joined(entry, local, shapes), strict=True):
                if dist.get_rank() == 0:
                    whole[name] = tensor.to("cpu", copy=True).contiguous()
        return {name: whole[name] for name in shapes if name in whole}  # the order in which torch numbers them

    def _joined(self, entry: Entry, local: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
        """Join the shards where they are, then tell the other stages."""
        like = next(iter(local.values()))
        if entry.stage == self.stage:
            mine = local[entry.name].detach().contiguous()
            shards = [torch.empty_like(mine) for _ in range(self.spec.layout.tensor)]
            dist.all_gather(shards, mine, group=parallel_state.get_tensor_model_parallel_group())
            tensors = [t.contiguous() for t in join(entry, shards, self.spec.model)]
        else:
            tensors = [torch.empty(shapes[s], dtype=like.dtype, device=like.device) for s in entry.sources]
        if self.spec.layout.pipeline > 1:
            group = parallel_state.get_pipeline_model_parallel_group()
            for tensor in tensors:
                dist.broadcast(tensor, dist.get_global_rank(group, entry.stage), group=group)
        return tensors


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the optimizer keeps what belongs to one parameter: under ``key``, of the flattened parameter from
    ``begin`` to ``end``. None: another replica keeps it."""

    optimizer: torch.optim.Optimizer
    key: Tensor
    begin: int
    end: int


def _place(optimizers: list[Any], parameter: nn.Parameter) -> _Place | None:
    for wrapper in optimizers:
        inner: torch.optim.Optimizer = wrapper.optimizer
        if not isinstance(wrapper, DistributedOptimizer):
            return _Place(inner, getattr(parameter, "main_param", parameter), 0, parameter.numel())
        if parameter in wrapper.model_param_group_index_map:
            group, order = wrapper.model_param_group_index_map[parameter]
            ranges = wrapper._get_model_param_range_map(parameter)["param"]
            return _Place(inner, inner.param_groups[group]["params"][order], ranges.start, ranges.end)
    return None


def _local(learner: RankLearner, kept: Callable[[_Place], Tensor]) -> dict[str, Tensor]:
    """Of each of this rank's parameters what the optimizer keeps of it, whole even where replicas share it out."""
    found: dict[str, Tensor] = {}
    for name, parameter in learner.shards.parameters(learner.model).items():
        flat = torch.zeros(parameter.numel(), dtype=torch.float32, device=learner.device)
        place = _place(learner.optimizer.chained_optimizers, parameter)
        if place is not None:
            flat[place.begin : place.end] = kept(place).detach().flatten()
        if learner.spec.distributed_optimizer:
            dist.all_reduce(flat, group=parallel_state.get_data_parallel_group())
        found[name] = flat.view(parameter.shape)
    return found


def main_parameters(learner: RankLearner) -> Mapping[str, Tensor]:
    """This rank's parameters in float32: the optimizer's where the model has them rounded."""
    if learner.config.dtype == "float32":
        return learner.shards.parameters(learner.model)
    return _local(learner, lambda place: place.key)


@torch.no_grad()
def fill_optimizer(learner: RankLearner, tensors: Mapping[str, Tensor]) -> None:
    """Set the float32 parameters that the optimizer keeps, whole tensors given under Hugging Face's names."""
    given = learner.shards.local(tensors)
    for name, parameter in learner.shards.parameters(learner.model).items():
        place = _place(learner.optimizer.chained_optimizers, parameter)
        if place is not None:
            place.key.copy_(given[name].flatten()[place.begin : place.end].view(place.key.shape))


def _moment(key: str, place: _Place) -> Tensor:
    found: Tensor = place.optimizer.state[place.key][key]
    return found


def save_learner(learner: RankLearner, directory: Path) -> None:
    """Every rank calls it; rank 0 writes."""
    shards = learner.shards
    model = shards.gather(main_parameters(learner))
    reference = shards.gather(shards.parameters(learner.reference[0])) if learner.reference else None
    moments = {key: shards.gather(_local(learner, partial(_moment, key))) for key in MOMENTS} if learner.updates else {}
    if dist.get_rank() == 0:
        state = {
            "model": model,
            "reference": reference,
            "optimizers": [_adamw_state(learner, model, moments)],
            "generator": learner.generator.get_state(),
            "version": learner.version,
            "updates": learner.updates,
        }
        with replacing(directory / FILE) as written:
            torch.save(state, written)
    dist.barrier()


def _adamw_state(learner: RankLearner, model: Mapping[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> Any:
    """What torch's AdamW over the whole model would say of itself."""
    form, order = _adamw_form(learner.config, {name: tuple(t.shape) for name, t in model.items()})
    for group in form["param_groups"]:
        group["lr"] = learner.optimizer.param_groups[0]["lr"]
    if moments:
        step = torch.tensor(float(learner.updates))
        form["state"] = {
            i: {"step": step.clone(), **{key: moments[key][name] for key in MOMENTS}} for i, name in enumerate(order)
        }
    return form


def _adamw_form(config: LearnerConfig, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], list[str]]:
    """``state_dict`` of a new AdamW over such parameters, and their names in the order of its indices."""
    named = {name: nn.Parameter(torch.zeros(()).expand(shape)) for name, shape in shapes.items()}
    names = {id(p): name for name, p in named.items()}
    optimizer = adamw(named.values(), config)
    return optimizer.state_dict(), [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def load_learner(learner: RankLearner, directory: Path) -> None:
    """Every rank reads what it needs of the file. Raises CheckpointError."""
    path = Path(directory) / FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        learner.shards.fill(learner.model, state["model"])
        fill_optimizer(learner, state["model"])
        if learner.reference is not None and state["reference"] is not None:
            learner.shards.fill(learner.reference[0], state["reference"])
        if len(state["optimizers"]) != 1:
            raise ValueError(f"it has {len(state['optimizers'])} optimizers, expected AdamW alone")
        _fill_moments(learner, state["optimizers"][0]["state"])
        learner.generator.set_state(state["generator"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, CheckpointError) as error:
        raise CheckpointError(f"{path} cannot be loaded into this learner: {error}") from error
    learner.version, learner.updates = int(state["version"]), int(state["updates"])


def _fill_moments(learner: RankLearner, saved: dict[int, dict[str, Tensor]]) -> None:
    order = _adamw_form(learner.config, parameter_shapes(learner.spec.model))[1]
    for wrapper in learner.optimizer.chained_optimizers:
        wrapper.optimizer.state.clear()
    if not saved:
        return
    local = {key: learner.shards.local({n: saved[i][key] for i, n in enumerate(order)}) for key in MOMENTS}
    for name, parameter in learner.shards.parameters(learner.model).items():
        place = _place(learner.optimizer.chained_optimizers, parameter)
        if place is None:
            continue
        state: dict[str, Tensor] = {"step": saved[0]["step"].clone()}
        for key in MOMENTS:
            flat = local[key][name].flatten()[place.begin : place.end]
            state[key] = flat.to(learner.device, copy=True).view(place.key.shape)
        place.optimizer.state[place.key] = state

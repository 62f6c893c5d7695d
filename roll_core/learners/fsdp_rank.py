"""One process of the learner that shares a model out (FSDP2, ``fully_shard``): its shards, its rows.

Invariants: every rank takes as many passes as the others, for each pass is a collective; parameters, gradients and
moments are float32 whatever the passes are; what ``save`` wrote with so many ranks, any other number can ``load``.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from roll_core.errors import CheckpointError
from roll_core.learners.batching import deal
from roll_core.learners.config import LearnerConfig
from roll_core.learners.logprobs import Scored, score
from roll_core.learners.objective import Step
from roll_core.learners.optimizers import make_optimizers
from roll_core.learners.processes import Rank
from roll_core.learners.shared_rank import SharedRank
from roll_core.models.lora import add_lora, plain_parameters
from roll_core.models.qwen import CausalLM, ModelConfig
from roll_core.types import TrainBatch

_STATE = "ranks.pt"


@dataclass(frozen=True, slots=True)
class Adapters:
    """The shape of LoRA's adapters."""

    rank: int
    alpha: float


@dataclass(frozen=True, slots=True)
class Begin:
    """What a rank begins from, beside a safetensors file of the model's parameters, adapters included."""

    model: ModelConfig
    config: LearnerConfig
    adapters: Adapters | None = None


def make_rank(begin: Begin, file: Path, rank: Rank) -> FsdpRank:
    return FsdpRank(begin, file, rank)


class _Scorer(nn.Module):
    """From tokens to log-probs in one forward, so that the head, too, is inside what FSDP gathers."""

    def __init__(self, policy: CausalLM, config: LearnerConfig) -> None:
        super().__init__()
        self.policy = policy
        self._config = config

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        c = self._config
        scored = score(
            self.policy,
            tokens_BT,
            mask_BT,
            temperature=c.temperature,
            head_tokens=c.head_tokens,
            entropy_gradient=c.entropy_coef > 0,
        )
        return scored.logprobs_BT, scored.entropy_BT


def _shard(begin: Begin, file: Path, mesh: DeviceMesh, device: torch.device, *, adapters: bool) -> _Scorer:
    """The model of the file, its parameters shared out over ``mesh``; nobody ever holds all of it on its device."""
    config = begin.config
    with torch.device("meta"):
        policy = CausalLM(begin.model, seed=None)
    if adapters and begin.adapters is not None:
        add_lora(policy, begin.adapters.rank, begin.adapters.alpha)
    scorer = _Scorer(policy, config)
    low = torch.bfloat16 if config.dtype == "bfloat16" else None
    precision = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32, output_dtype=torch.float32 if low else None
    )
    within_block = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    for block in policy.model.layers:
        block.recompute = config.activation_checkpointing  # type: ignore[assignment]
        fully_shard(block, mesh=mesh, mp_policy=within_block)
    fully_shard(scorer, mesh=mesh, mp_policy=precision)
    scorer.to_empty(device=device)
    _fill(policy, file)
    return scorer


@torch.no_grad()
def _fill(policy: CausalLM, file: Path) -> None:
    with safe_open(str(file), framework="pt") as given:
        for name, parameter in policy.named_parameters():
            assert isinstance(parameter, DTensor)
            whole = given.get_tensor(name).to(parameter.device, parameter.dtype)
            parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None))


class FsdpRank(SharedRank):
    """What :class:`~roll_core.learners.fsdp.FsdpLearner` calls, in every process alike."""

    def __init__(self, begin: Begin, file: Path, rank: Rank) -> None:
        super().__init__(begin.config, torch.device(rank.device))
        self.rank = rank
        self._mesh = init_device_mesh(self.device.type, (rank.count,))
        self._scorer = _shard(begin, file, self._mesh, self.device, adapters=True)
        self._policy = self._scorer.policy
        self._reference: _Scorer | None = None
        if self.has_reference:
            self._reference = _shard(begin, file, self._mesh, self.device, adapters=False).requires_grad_(False)
        self._optimizers = make_optimizers(self._policy, self.config)

    # --- training ----------------------------------------------------------------------------------------------------

    def _update_on(self, step: Step, rows: list[int], lr: float) -> None:
        weights_BT = self.objective.weights(step.batch, rows)
        for some in self._mine([r for r in rows if r in step.telling], step.lengths):
            if some:
                part = (some, slice(0, step.lengths[some[0]]))
                scored = Scored(*self._scorer(step.batch.tokens_BT[part], step.batch.mask_BT[part]))
                loss = self.objective.part_loss(step, part, scored, weights_BT)
            else:
                loss = self._nothing(self._scorer, step.batch)
            (loss * self.rank.count).backward()  # type: ignore[no-untyped-call]  # FSDP averages over the ranks
        step.updated(*self._apply(lr))

    def _mine(self, rows: list[int], lengths: list[int]) -> list[list[int]]:
        return deal(rows, lengths, self.config.micro_batch_tokens, self.rank.count)[self.rank.index]

    def _nothing(self, scorer: _Scorer, batch: TrainBatch) -> Tensor:
        """A pass beside those of the others, whose gradient is 0."""
        tokens_BT = batch.tokens_BT[:1, :2]
        logprobs_BT, _ = scorer(tokens_BT, torch.ones_like(tokens_BT, dtype=torch.float32))
        zero: Tensor = logprobs_BT.sum() * 0.0
        return zero

    def _apply(self, lr: float) -> tuple[float, bool]:
        """Clip, step and clear the accumulated gradient, as the plain learner does; the norm is that of all shards."""
        norm = torch.nn.utils.clip_grad_norm_(self._policy.parameters(), self.config.max_grad_norm)
        size = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        applied = size < float("inf")
        if applied:
            self.updates += 1
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * self.objective.rise(self.updates)
                optimizer.step()
        self._policy.zero_grad(set_to_none=True)
        return size, applied

    # --- log-probs ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _scores(
        self, batch: TrainBatch, lengths: list[int], only: list[int] | None = None, *, reference: bool = False
    ) -> Scored:
        """Each rank scores its rows; all get all."""
        scorer = self._reference if reference else self._scorer
        assert scorer is not None
        out_2BT = torch.zeros(2, *batch.tokens_BT.shape, dtype=torch.float32, device=self.device)
        for some in self._mine(list(range(len(lengths))) if only is None else only, lengths):
            if not some:
                self._nothing(scorer, batch)
                continue
            part = (some, slice(0, lengths[some[0]]))
            out_2BT[0][part], out_2BT[1][part] = scorer(batch.tokens_BT[part], batch.mask_BT[part])
        assert isinstance(scorer, FSDPModule)
        scorer.reshard()  # the root stays gathered for a backward pass, and there is none
        dist.all_reduce(out_2BT)
        return Scored(out_2BT[0], out_2BT[1])

    # --- state -------------------------------------------------------------------------------------------------------

    def write_weights(self, file: Path) -> None:
        """The merged parameters under Hugging Face's names, in one safetensors file that the first rank writes."""
        whole: dict[str, Tensor] = {}
        for name, parameter in plain_parameters(self._policy).items():
            gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if self.rank.index == 0:
                whole[name] = gathered.cpu().contiguous()
        if self.rank.index == 0:
            save_file(whole, file)

    def save(self, directory: Path) -> None:
        """A distributed checkpoint: every rank writes its shards."""
        directory.mkdir(parents=True, exist_ok=True)
        state = dict(self._tensors())
        save_shards(state, checkpoint_id=str(directory))
        if self.rank.index == 0:
            extra = {"version": self.version, "updates": self.updates, "generator": self.generator.get_state()}
            torch.save(extra, directory / _STATE)
        dist.barrier()

    def load(self, directory: Path) -> int:
        """The version that was saved. Raises CheckpointError when it is missing, torn, or of another model."""
        try:
            reader = FileSystemReader(str(directory))
            saved = reader.read_metadata().state_dict_metadata
            moments = {name: meta for name, meta in saved.items() if name.startswith("moments.")}
            self._make_moments(moments)
            state = dict(self._tensors())
            if state.keys() != saved.keys():
                missing, unknown = sorted(state.keys() - saved.keys()), sorted(saved.keys() - state.keys())
                raise KeyError(f"missing {missing[:3]}, unknown {unknown[:3]}")
            load_shards(state, storage_reader=reader)
            extra = torch.load(directory / _STATE, weights_only=True)
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, CheckpointException) as error:
            raise CheckpointError(f"{directory} cannot be loaded into this learner: {error}") from error
        self.generator.set_state(extra["generator"])
        self.version, self.updates = int(extra["version"]), int(extra["updates"])
        return self.version

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that is saved, by its name: shards where it is shared out. Loading copies into them."""
        for name, parameter in self._policy.named_parameters():
            yield f"policy.{name}", parameter.detach()
        if self._reference is not None:
            for name, parameter in self._reference.policy.named_parameters():
                yield f"reference.{name}", parameter.detach()
        for optimizer in self._optimizers:
            for name, parameter in self._policy.named_parameters():
                for key, value in optimizer.state.get(parameter, {}).items():
                    yield f"moments.{name}.{key}", value

    def _make_moments(self, saved: dict[str, Any]) -> None:
        """Places for what was saved of the optimizers; there are none before their first step."""
        parameters = dict(self._policy.named_parameters())
        for optimizer in self._optimizers:
            optimizer.state.clear()
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for full, meta in saved.items():
                name, _, key = full.removeprefix("moments.").rpartition(".")
                parameter = parameters.get(name)
                if parameter is None or id(parameter) not in owned:
                    continue
                alike = meta.size == parameter.shape and parameter.dim() > 0
                place = torch.zeros_like(parameter) if alike else torch.zeros(meta.size, device=self.device)
                optimizer.state[parameter][key] = place.detach()

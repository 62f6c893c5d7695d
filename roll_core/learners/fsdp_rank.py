"""One process of the learner that shares a model out (FSDP2, ``fully_shard``): its shards, its rows.

Invariants: every rank gets the whole batch, does the same updates in the same order and takes as many passes as the
others, for each pass is a collective; rows are dealt out, so that the sum of the ranks' gradients is that of one big
batch; parameters, gradients and moments are float32 whatever the passes are; what ``save`` wrote with so many ranks,
any other number can ``load``.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import heapq
import time
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
from roll_core.learners.base import Scores
from roll_core.learners.config import LearnerConfig
from roll_core.learners.logprobs import Scored, micro_batches, row_lengths, score
from roll_core.learners.objective import Objective, Step
from roll_core.learners.optimizers import make_optimizers
from roll_core.learners.processes import Rank
from roll_core.learners.torch_learner import to_device
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
    """What a rank begins from. ``parameters``: a safetensors file of the model's parameters, adapters included."""

    model: ModelConfig
    parameters: Path
    config: LearnerConfig
    adapters: Adapters | None = None


def make_rank(begin: Begin, rank: Rank) -> FsdpRank:
    return FsdpRank(begin, rank)


def deal(rows: list[int], lengths: list[int], tokens: int, ranks: int) -> list[list[list[int]]]:
    """The micro-batches of each rank: every row of some length once, at most ``tokens`` in each (or one row), and as
    many for every rank, the last ones empty where there is no more to do.

    The longest row left goes to whoever has the fewest tokens: a step lasts as long as its slowest rank.
    """
    heap = [(0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted((r for r in rows if lengths[r]), key=lambda r: (-lengths[r], r)):
        load, rank = heapq.heappop(heap)
        shares[rank].append(row)
        heapq.heappush(heap, (load + lengths[row], rank))
    dealt = [list(micro_batches(share, lengths, tokens)) for share in shares]
    most = max(len(share) for share in dealt)
    return [[*share, *([] for _ in range(most - len(share)))] for share in dealt]


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


def _shard(begin: Begin, mesh: DeviceMesh, device: torch.device, *, adapters: bool) -> _Scorer:
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
    _fill(policy, begin.parameters)
    return scorer


@torch.no_grad()
def _fill(policy: CausalLM, file: Path) -> None:
    with safe_open(str(file), framework="pt") as given:
        for name, parameter in policy.named_parameters():
            assert isinstance(parameter, DTensor)
            whole = given.get_tensor(name).to(parameter.device, parameter.dtype)
            parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None))


class FsdpRank:
    """What :class:`~roll_core.learners.fsdp.FsdpLearner` calls, in every process alike."""

    def __init__(self, begin: Begin, rank: Rank) -> None:
        self.rank, self.config = rank, begin.config
        self._device = torch.device(rank.device)
        self._mesh = init_device_mesh(self._device.type, (rank.count,))
        self._scorer = _shard(begin, self._mesh, self._device, adapters=True)
        self._policy = self._scorer.policy
        self._reference: _Scorer | None = None
        if self.config.kl_coef:
            self._reference = _shard(begin, self._mesh, self._device, adapters=False).requires_grad_(False)
        self._objective = Objective(self.config, has_reference=self._reference is not None)
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._optimizers = make_optimizers(self._policy, self.config)
        self.version = 0
        self._updates = 0
        self._decay = 1.0

    # --- training ----------------------------------------------------------------------------------------------------

    def train_step(self, batch: TrainBatch, progress: float) -> dict[str, float]:
        """All updates on the whole batch; metrics are of all ranks together."""
        begin_s = time.perf_counter()
        self._decay = self._objective.decay(progress)
        batch = to_device(batch, self._device)
        lengths = row_lengths(batch.mask_BT)
        telling = self._objective.telling(batch)
        reference_BT = None
        if self._objective.penalised:
            assert self._reference is not None
            reference_BT = self._scores(self._reference, batch, lengths).logprobs_BT
        prox_BT = self._objective.given_prox(batch)
        if self._objective.needs_prox(batch):
            prox_BT = self._scores(self._scorer, batch, lengths, sorted(telling)).logprobs_BT
        step = Step(batch, lengths, telling, prox_BT, reference_BT, self.version)
        for _ in range(self.config.epochs):
            for rows in self._objective.minibatches(len(lengths), self._generator):
                self._update_on(step, rows)
        self.version += 1
        self._merge(step)
        lr = self._optimizers[0].param_groups[0]["lr"]
        return self._objective.metrics(step, lr=lr, seconds=time.perf_counter() - begin_s)

    def _update_on(self, step: Step, rows: list[int]) -> None:
        weights_BT = self._objective.weights(step.batch, rows)
        for some in self._mine([r for r in rows if r in step.telling], step.lengths):
            if some:
                part = (some, slice(0, step.lengths[some[0]]))
                scored = Scored(*self._scorer(step.batch.tokens_BT[part], step.batch.mask_BT[part]))
                loss = self._objective.part_loss(step, part, scored, weights_BT)
            else:
                loss = self._nothing(self._scorer, step.batch)
            (loss * self.rank.count).backward()  # type: ignore[no-untyped-call]  # FSDP averages over the ranks
        step.updated(*self._apply(self.config.lr * self._decay))

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
            self._updates += 1
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * self._objective.rise(self._updates)
                optimizer.step()
        self._policy.zero_grad(set_to_none=True)
        return size, applied

    def _merge(self, step: Step) -> None:
        found: list[Any] = [None] * self.rank.count
        dist.all_gather_object(found, (dict(step.totals), step.mismatch))
        for index, (totals, mismatch) in enumerate(found):
            if index != self.rank.index:
                step.merge(totals, mismatch)

    def skip_step(self) -> None:
        self.version += 1

    # --- log-probs ---------------------------------------------------------------------------------------------------

    def score(self, batch: TrainBatch) -> Scores | None:
        """On the CPU; from the first rank alone, for all have the same."""
        moved = to_device(batch, self._device)
        lengths = row_lengths(moved.mask_BT)
        own = self._scores(self._scorer, moved, lengths)
        reference_BT = None
        if self._reference is not None:
            reference_BT = self._scores(self._reference, moved, lengths).logprobs_BT.cpu()
        if self.rank.index:
            return None
        return Scores(own.logprobs_BT.cpu(), own.entropy_BT.cpu(), reference_BT)

    @torch.no_grad()
    def _scores(self, scorer: _Scorer, batch: TrainBatch, lengths: list[int], only: list[int] | None = None) -> Scored:
        """Each rank scores its rows; all get all."""
        out_2BT = torch.zeros(2, *batch.tokens_BT.shape, dtype=torch.float32, device=self._device)
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
            extra = {"version": self.version, "updates": self._updates, "generator": self._generator.get_state()}
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
        self._generator.set_state(extra["generator"])
        self.version, self._updates = int(extra["version"]), int(extra["updates"])
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
                place = torch.zeros_like(parameter) if alike else torch.zeros(meta.size, device=self._device)
                optimizer.state[parameter][key] = place.detach()

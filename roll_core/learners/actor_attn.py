"""actor_attn: the policy that gives its attention away (arXiv 2510.13554), for the credit of attention rhythm.

Invariants: it speaks of the policy at the start of the update; rows without advantage are spared, as in the learner,
and have zeros; the mean over a set of heads is taken per row, from that row's own head spans. What people are to see of
a batch is chosen here, before the update, because afterwards the policy is another.

A group is always read by itself. So what :meth:`AttentionReader.read_ahead` found of a finished group while the learner
waited for the rest of its batch, is bit for bit what reading the whole batch finds, and a replay comes to the same.

Shape legend: B rows, T tokens, N heads of all layers that are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from roll_core.algorithms.rhythm import RhythmSettings, head_sets
from roll_core.learners.base import Rhythm
from roll_core.learners.batching import micro_batches, row_lengths
from roll_core.learners.logprobs import score
from roll_core.models.attention import MAP_ELEMENTS, HeadRhythm, chosen_layers, head_rhythm
from roll_core.models.checkpoint import load_tensors
from roll_core.models.lora import plain_copy
from roll_core.models.qwen import CausalLM
from roll_core.types import TrainBatch, Weights

_ON_A_GPU = 64


@dataclass(frozen=True, slots=True)
class Attended:
    """The attention of one batch, with what chose the heads."""

    rhythm: Rhythm
    span_BN: Tensor
    local_BN: Tensor
    """bool."""
    global_BN: Tensor
    """bool."""

    @classmethod
    def empty(cls, shape_BT: torch.Size, heads: int) -> Attended:
        rows, length = shape_BT
        off_BN = torch.zeros(rows, heads, dtype=torch.bool)
        rhythm = Rhythm(torch.zeros(rows, length), torch.zeros(rows, length))
        return cls(rhythm, torch.zeros(rows, heads), off_BN, off_BN.clone())

    def put(self, rows: list[int], other: Attended) -> None:
        """The rows of ``other``, which may be padded otherwise, become ``rows`` of this."""
        length = min(self.rhythm.waad_BT.shape[1], other.rhythm.waad_BT.shape[1])
        self.rhythm.waad_BT[rows, :length] = other.rhythm.waad_BT[:, :length]
        self.rhythm.fai_BT[rows, :length] = other.rhythm.fai_BT[:, :length]
        for name in ("span_BN", "local_BN", "global_BN"):
            getattr(self, name)[rows] = getattr(other, name)


@dataclass(frozen=True, slots=True)
class Reading:
    """The last batch that was read. ``batch`` is the very object, so that later its advantages are the final ones."""

    batch: TrainBatch
    rows: tuple[int, ...]
    """Those that were read."""
    attended: Attended
    shown: tuple[int, ...]
    """Those that people are to see, in step with ``entropy_ST``."""
    entropy_ST: Tensor
    """Of the policy before the update, nats."""
    layers: tuple[int, ...]
    """Whose heads ``attended`` speaks of, one after the other."""


@dataclass(slots=True)
class _Ahead:
    read: dict[tuple[str, ...], Attended] = field(default_factory=dict)
    """Of each group by the ids of the trajectories that were read, in their order."""
    asked: int = 0
    hits: int = 0


class AttentionReader:
    """An :class:`~roll_core.learners.base.ActorAttn`."""

    def __init__(
        self,
        model: CausalLM,
        settings: RhythmSettings,
        *,
        shared: bool,
        micro_batch_tokens: int = 8192,
        record: int = 0,
        temperature: float = 1.0,
        device: str | None = None,
    ) -> None:
        """``shared``: ``model`` is the one that the learner trains in place, so it is always the present policy and
        nothing is ever copied. Otherwise this keeps a copy, on ``device``, that :meth:`load_weights` brings up to date.
        ``record``: rows of each batch that people are to see; ``temperature``: of sampling, for their entropy."""
        self.model = model if shared else plain_copy(model).requires_grad_(False).to(device)
        self.layers = chosen_layers(model.config.layers, settings.layers)
        self.settings = settings
        self.last: Reading | None = None
        self._ahead = _Ahead()
        self._shared = shared
        self._micro_batch_tokens = micro_batch_tokens
        self._record = record
        self._temperature = temperature

    def load_weights(self, weights: Weights) -> None:
        """Be the policy of this version. Raises CheckpointError when the weights are another model's."""
        self._ahead.read.clear()
        if not self._shared:
            load_tensors(self.model, weights.tensors)

    def read_ahead(self, batch: TrainBatch) -> None:
        """Read the groups of ``batch`` now, so that :meth:`rhythm` of a batch that holds them need not, as far as it
        finds an advantage in the same rows. The policy must stay as it is until then; :meth:`load_weights` forgets what
        was read of the one before."""
        for rows in _by_group(batch, telling_rows(batch) or list(range(len(batch.mask_BT)))):
            if (key := _key(batch, rows)) and key not in self._ahead.read:
                self._ahead.read[key] = self.attended(batch.tokens_BT[rows], batch.mask_BT[rows])

    def rhythm(self, batch: TrainBatch) -> Rhythm:
        """Rows without advantage are zero; where the advantages are not known yet (all 0), every row is read."""
        rows = telling_rows(batch) or list(range(len(batch.mask_BT)))
        attended = self._of_groups(batch, rows)
        shown = self._shown(rows, int(batch.versions_BT.max()))
        entropies = [self.entropy(batch.tokens_BT[row : row + 1], batch.mask_BT[row : row + 1]) for row in shown]
        entropy_ST = torch.cat(entropies) if entropies else torch.zeros(0, batch.mask_BT.shape[1])
        self.last = Reading(batch, tuple(rows), attended, tuple(shown), entropy_ST, tuple(self.layers))
        return attended.rhythm

    def close(self) -> None:
        """There is nothing to end."""

    def _of_groups(self, batch: TrainBatch, wanted: list[int]) -> Attended:
        """The ``wanted`` rows, group by group; zeros in the others."""
        out = Attended.empty(batch.mask_BT.shape, self._heads)
        self._ahead.hits = self._ahead.asked = 0
        for rows in _by_group(batch, wanted):
            found = self._ahead.read.get(_key(batch, rows))
            self._ahead.asked += 1
            self._ahead.hits += found is not None
            out.put(rows, found or self.attended(batch.tokens_BT[rows], batch.mask_BT[rows]))
        return out

    @property
    def ahead_share(self) -> float:
        """Of the groups of the last batch, those that had been read ahead."""
        return self._ahead.hits / max(1, self._ahead.asked)

    @property
    def _heads(self) -> int:
        return len(self.layers) * self.model.config.heads

    def _shown(self, rows: list[int], version: int) -> list[int]:
        """Another place in the batch with every version, so that not always the first group is seen."""
        count = min(self._record, len(rows))
        return sorted(rows[(version * 7 + i * len(rows) // count) % len(rows)] for i in range(count))

    @torch.no_grad()
    def entropy(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Entropy of the present policy where each token of the mask was sampled, nats, BT on the CPU."""
        device = self.model.model.embed_tokens.weight.device
        scored = score(self.model, tokens_BT.to(device), mask_BT.to(device), temperature=self._temperature)
        return scored.entropy_BT.cpu()

    def attended(self, tokens_BT: Tensor, mask_BT: Tensor, rows: list[int] | None = None) -> Attended:
        """The rhythm of ``rows`` (all of them), zeros in the others; on the CPU."""
        out = Attended.empty(tokens_BT.shape, self._heads)
        lengths = row_lengths(mask_BT)
        wanted = list(range(len(lengths))) if rows is None else rows
        for some in micro_batches(wanted, lengths, self._micro_batch_tokens):
            length = lengths[some[0]]
            found = self._read(tokens_BT[some, :length], mask_BT[some, :length])
            local_bN, global_bN = head_sets(found.span_BN, self.settings.head_share)
            out.rhythm.waad_BT[some, :length] = found.mean(found.waad_BNC, local_bN, length).cpu()
            out.rhythm.fai_BT[some, :length] = found.mean(found.fai_BNC, global_bN, length).cpu()
            out.span_BN[some], out.local_BN[some] = found.span_BN.cpu(), local_bN.cpu()
            out.global_BN[some] = global_bN.cpu()
        return out

    def _read(self, tokens_BT: Tensor, mask_BT: Tensor) -> HeadRhythm:
        device = self.model.model.embed_tokens.weight.device
        return head_rhythm(
            self.model,
            tokens_BT.to(device),
            mask_BT.to(device),
            layers=self.layers,
            window=self.settings.window,
            horizon=self.settings.horizon,
            map_elements=MAP_ELEMENTS * (1 if device.type == "cpu" else _ON_A_GPU),
        )


def telling_rows(batch: TrainBatch) -> list[int]:
    """The rows that say anything: γ·0 is 0, so where no token has an advantage nobody need look."""
    told: list[int] = (batch.advantages_BT * batch.mask_BT).any(dim=1).nonzero().flatten().tolist()
    return told


def _by_group(batch: TrainBatch, rows: list[int]) -> list[list[int]]:
    """``rows``, those of one group together."""
    groups: dict[int, list[int]] = {}
    for row, group in zip(rows, batch.group_B[rows].tolist(), strict=True):
        groups.setdefault(group, []).append(row)
    return list(groups.values())


def _key(batch: TrainBatch, rows: list[int]) -> tuple[str, ...]:
    """Empty where the trajectories have no names."""
    return tuple(batch.trajectory_ids[row] for row in rows) if batch.trajectory_ids else ()

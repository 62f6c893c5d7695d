"""Critics in plain torch: M value functions on the trunk of a language model, CPU or one GPU.

The value at a response token t is read off the hidden state of token t − 1: of everything up to there, before t was
sampled. The hidden state of a row's last response token gives the value of where the row ended, from which a truncated
episode bootstraps.

Invariants: a critic learns from the responses of its own share alone; which those are, and in what order they are met,
follows from the seed and the number of steps taken, so that a step depends on nothing but the critics' state and the
batch; a gradient does not depend on the split into micro-batches; an update whose gradient is not finite is skipped and
counted; ``save`` then ``load`` continues bit for bit.

Shape legend: M critics, B rows, T tokens, N chosen tokens, D hidden.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from roll_core.algorithms import gae, token_weights
from roll_core.algorithms.advantages import of_turns, on_tokens
from roll_core.algorithms.critics import explained_variance, partition, value_loss, with_bootstrap
from roll_core.errors import CheckpointError
from roll_core.learners.base import Estimate
from roll_core.learners.batching import micro_batches, row_lengths
from roll_core.learners.config import LearnerConfig
from roll_core.learners.optimizers import make_optimizers
from roll_core.learners.saving import replacing
from roll_core.models.qwen import CausalLM
from roll_core.types import TrainBatch

_FILE = "critics.pt"
_SPREAD = 1_000_003
"""A prime: seeds and steps that people use do not meet in seed · _SPREAD + step."""

Targets = Literal["monte_carlo", "gae"]


class ValueModel(nn.Module):
    """The trunk of a language model, without its vocabulary head, and a linear head with one output.

    The head is drawn from N(0, 1/(D + 1)²): on a normalised hidden state values begin near 0, and differ by critic.
    """

    def __init__(self, model: CausalLM, *, seed: int) -> None:
        """``model``'s trunk is used as it is, not copied."""
        super().__init__()
        self.config = model.config
        self.trunk = model.model
        self.head = nn.Linear(model.config.hidden, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 1 / (model.config.hidden + 1), generator=generator)
            self.head.bias.zero_()

    def forward(self, tokens_BT: Tensor, after_BT: Tensor) -> Tensor:
        """Value of the state after each token where ``after_BT`` holds; N, in row-major order, float32."""
        chosen_N = after_BT.flatten().nonzero().squeeze(1)
        out_N1: Tensor = self.head(self.trunk(tokens_BT, chosen_N).to(self.head.weight.dtype))
        return out_N1.squeeze(1).float()


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """Mirrors the recipe's section ``critic``, whose docstrings say what each is, and what it takes from others."""

    partition: bool = True
    lr: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: int = 1
    updates_per_batch: int = 4
    value_clip: float | None = 0.2
    targets: Targets = "monte_carlo"
    bootstrap: bool = True
    gamma: float = 1.0
    lam: float = 0.95
    level: Literal["token", "turn"] = "token"
    """What γ and λ count, as in ``algorithm.gae_level``."""
    micro_batch_tokens: int = 4096
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Rows:
    """A batch as critics look at it, on their device. ``lengths``: of each row up to its last response token."""

    tokens_BT: Tensor
    mask_BT: Tensor
    lengths: list[int]


@dataclass(frozen=True, slots=True)
class _Share:
    """What one critic meets in one step: its rows, and its old values and targets of the whole batch (BT)."""

    rows: list[int]
    old_BT: Tensor
    returns_BT: Tensor


class CriticLearner:
    """A :class:`~roll_core.learners.base.Critics`. ``models`` are trained in place and belong to the learner."""

    def __init__(
        self, models: Sequence[ValueModel], settings: CriticSettings | None = None, *, device: str = "cpu"
    ) -> None:
        """Raises ValueError when there is no model."""
        if not models:
            raise ValueError("no critic given, expected at least one")
        self.settings = settings or CriticSettings()
        self.models = [model.to(device) for model in models]
        self._device = torch.device(device)
        s = self.settings
        optimizing = LearnerConfig(lr=s.lr, weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm)
        self._optimizers = [make_optimizers(model, optimizing)[0] for model in self.models]
        self._steps = 0

    # -- values ----------------------------------------------------------------------------------------------------

    def values(self, batch: TrainBatch) -> Tensor:
        """V_MBT, 0 outside the mask; no gradient. On the batch's own device, as all that is given back."""
        return self.estimate(batch).values_MBT

    def estimate(self, batch: TrainBatch) -> Estimate:
        rows = self._rows(batch)
        found = [self._estimate(model, rows) for model in self.models]
        home = batch.mask_BT.device
        return Estimate(torch.stack([v for v, _ in found]).to(home), torch.stack([f for _, f in found]).to(home))

    @torch.no_grad()
    def _estimate(self, model: ValueModel, rows: _Rows, only: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Values BT and final values B of one critic; 0 in rows that are not among ``only``."""
        mask_BT, lengths = rows.mask_BT, rows.lengths
        values_BT = torch.zeros(mask_BT.shape, dtype=torch.float32, device=self._device)
        final_B = torch.zeros(len(mask_BT), dtype=torch.float32, device=self._device)
        wanted = list(range(len(lengths)) if only is None else only)
        for some in micro_batches(wanted, lengths, self.settings.micro_batch_tokens):
            part = (some, slice(0, lengths[some[0]]))
            after_bt = _before(mask_BT[part])
            last_b = torch.tensor([lengths[r] - 1 for r in some], device=self._device)
            after_bt[torch.arange(len(some), device=self._device), last_b] = True
            found_bt = torch.zeros(after_bt.shape, dtype=torch.float32, device=self._device)
            found_bt[after_bt] = model(rows.tokens_BT[part], after_bt)
            final_B[some] = found_bt.gather(1, last_b.unsqueeze(1)).squeeze(1)
            values_BT[part] = nn.functional.pad(found_bt[:, :-1], (1, 0)) * mask_BT[part]
        return values_BT, final_B

    # -- training --------------------------------------------------------------------------------------------------

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """All updates of every critic on its share of ``batch``; needs ``rewards_BT``.

        ``critic/loss``, ``grad_norm``, ``clip_fraction``: means over updates and critics. ``explained_variance``: of
        the returns, by the values from before the step, each response judged by those critics that then learn from it:
        never of what they have learnt. ``memory_bytes``: parameters and optimizer state. Raises ValueError without
        rewards.
        """
        begin = time.perf_counter()
        rows = self._rows(batch)
        shares = self._shares(batch, rows)
        totals: dict[str, float] = defaultdict(float)
        for m, share in enumerate(shares):
            generator = self._generator(1 + m)
            for _ in range(self.settings.epochs):
                for some in _minibatches(share.rows, self.settings.updates_per_batch, generator):
                    self._update_on(m, some, share, rows, totals)
        self._steps += 1
        return self._metrics(totals, shares, rows.mask_BT, time.perf_counter() - begin)

    def _generator(self, place: int) -> torch.Generator:
        """A stream of random numbers of this step, for one purpose: state to save is the number of steps alone."""
        step = (self.settings.seed * _SPREAD + self._steps) * (len(self.models) + 1)
        return torch.Generator().manual_seed(step + place)

    def _rows(self, batch: TrainBatch) -> _Rows:
        mask_BT = (batch.mask_BT > 0).to(self._device, torch.float32)
        mask_BT[:, 0] = 0.0  # nothing precedes token 0, so no state does
        return _Rows(batch.tokens_BT.to(self._device), mask_BT, row_lengths(mask_BT))

    def _shares(self, batch: TrainBatch, rows: _Rows) -> list[_Share]:
        if batch.rewards_BT is None:
            raise ValueError("the batch has no rewards_BT, from which critics learn: expected rewards per token")
        s, count = self.settings, len(self.models)
        rewards_BT, mask_BT = batch.rewards_BT.to(self._device), rows.mask_BT
        if s.partition and count > 1:
            owner_B = partition(batch.group_B, count, self._generator(0))
            owned = [(owner_B == m).nonzero().flatten().tolist() for m in range(count)]
        else:
            owned = [list(range(len(mask_BT)))] * count
        shares = []
        for model, own in zip(self.models, owned, strict=True):
            old_BT, final_B = self._estimate(model, rows, own)
            ended = batch.truncated_B if s.bootstrap else None
            earned_BT = with_bootstrap(rewards_BT, mask_BT, ended, final_B, s.gamma)
            shares.append(_Share(own, old_BT, self._targets(batch, earned_BT, old_BT, mask_BT)))
        return shares

    def _targets(self, batch: TrainBatch, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> Tensor:
        s = self.settings
        lam = s.lam if s.targets == "gae" else 1.0
        base_BT = values_BT if s.targets == "gae" else torch.zeros_like(values_BT)
        if s.level == "token" or batch.turn_BT is None:
            return gae(rewards_BT, base_BT, mask_BT, s.gamma, lam)[1]
        turn_BT = batch.turn_BT.to(self._device)
        rewards_BK, mask_BK = of_turns(rewards_BT, turn_BT, "sum")
        base_BK, _ = of_turns(base_BT, turn_BT, "first")
        return on_tokens(gae(rewards_BK, base_BK, mask_BK, s.gamma, lam)[1], turn_BT)

    def _update_on(self, m: int, chosen: list[int], share: _Share, rows: _Rows, totals: dict[str, float]) -> None:
        """One optimizer update of critic ``m`` on the ``chosen`` rows; adds to ``totals``."""
        weights_BT = torch.zeros_like(rows.mask_BT)
        weights_BT[chosen] = token_weights(rows.mask_BT[chosen], "token-mean")
        for some in micro_batches(chosen, rows.lengths, self.settings.micro_batch_tokens):
            part = (some, slice(0, rows.lengths[some[0]]))
            inside_bt = rows.mask_BT[part] > 0
            value_N = self.models[m](rows.tokens_BT[part], _before(rows.mask_BT[part]))
            old_N, return_N = share.old_BT[part][inside_bt], share.returns_BT[part][inside_bt]
            loss_N, clipped_N = value_loss(value_N, old_N, return_N, self.settings.value_clip)
            loss = (loss_N * weights_BT[part][inside_bt]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            totals["loss"] += loss.item()
            totals["clipped"] += clipped_N.sum().item()
            totals["count"] += len(clipped_N)
        norm = nn.utils.clip_grad_norm_(self.models[m].parameters(), self.settings.max_grad_norm).item()
        applied = norm < float("inf")  # false for NaN too
        if applied:
            self._optimizers[m].step()
        self.models[m].zero_grad(set_to_none=True)
        totals["updates"] += 1
        totals["skipped"] += not applied
        totals["grad_norm"] += norm

    def _metrics(
        self, totals: dict[str, float], shares: Sequence[_Share], mask_BT: Tensor, seconds: float
    ) -> dict[str, float]:
        updates = max(1.0, totals["updates"])
        rows = [r for share in shares for r in share.rows]
        old_BT = torch.cat([share.old_BT[share.rows] for share in shares])
        returns_BT = torch.cat([share.returns_BT[share.rows] for share in shares])
        metrics = {
            "loss": totals["loss"] / updates,
            "grad_norm": totals["grad_norm"] / updates,
            "clip_fraction": totals["clipped"] / max(1.0, totals["count"]),
            "explained_variance": explained_variance(old_BT, returns_BT, mask_BT[rows]),
            "updates": totals["updates"],
            "skipped_updates": totals["skipped"],
            "memory_bytes": float(self.memory_bytes()),
            "step_s": seconds,
        }
        return {f"critic/{name}": float(value) for name, value in metrics.items()}

    def memory_bytes(self) -> int:
        """Parameters and optimizer state of all critics, as they are now: before the first update there is no state."""
        tensors: list[Tensor] = [p for model in self.models for p in model.parameters()]
        states = (state for optimizer in self._optimizers for state in optimizer.state.values())
        tensors += [x for state in states for x in state.values() if isinstance(x, Tensor)]
        return sum(x.numel() * x.element_size() for x in tensors)

    # -- state -----------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write ``critics.pt``."""
        state: dict[str, Any] = {
            "models": [model.state_dict() for model in self.models],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "steps": self._steps,
        }
        with replacing(Path(directory) / _FILE) as partial:
            torch.save(state, partial)

    def load(self, directory: Path) -> None:
        """Raises CheckpointError when the file is missing, torn, or of other critics."""
        path = Path(directory) / _FILE
        try:
            state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
            for model, saved in zip(self.models, state["models"], strict=True):
                model.load_state_dict(saved)
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self._steps = int(state["steps"])
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
            raise CheckpointError(
                f"{path} cannot be loaded into {len(self.models)} critics of {_words(self.models[0])}: {error}"
            ) from error

    def close(self) -> None:
        """There is nothing to end."""


def _before(mask_BT: Tensor) -> Tensor:
    """Bool BT: tokens t whose next one is a response token, so that the state after t is the one before that."""
    return nn.functional.pad(mask_BT[:, 1:] > 0, (0, 1))


def _minibatches(rows: Sequence[int], count: int, generator: torch.Generator) -> list[list[int]]:
    """``rows`` shuffled and dealt into at most ``count`` parts, none empty."""
    count = min(count, len(rows))
    order = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    return [sorted(order[i::count]) for i in range(count)]


def _words(model: ValueModel) -> str:
    c = model.config
    return f"{c.layers} layers of width {c.hidden} over {c.vocab} tokens"

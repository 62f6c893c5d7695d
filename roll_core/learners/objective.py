"""What every learner makes of a batch: rows, weights, loss and metrics. How log-probs come about is the learner's own.

Invariants: nothing here depends on where parameters lie or on who computes which row: the losses of parts add up to the
loss of the batch, and the counts of several :class:`Step` merge into those of one that saw every part.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from roll_core.algorithms import LossInputs, TokenLoss, kl_estimate, token_weights
from roll_core.algorithms.mismatch import MismatchMeter
from roll_core.learners.batching import padded_positions
from roll_core.learners.config import LearnerConfig
from roll_core.learners.logprobs import Scored
from roll_core.types import TrainBatch


@dataclass(slots=True)
class Step:
    """One ``train_step`` while it lasts. ``telling``: the rows that have a gradient; ``version``: before it;
    ``packed``: rows lie end to end in a pass, without padding."""

    batch: TrainBatch
    lengths: list[int]
    telling: set[int]
    prox_BT: Tensor | None
    reference_BT: Tensor | None
    version: int
    packed: bool = False
    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    mismatch: MismatchMeter = field(default_factory=MismatchMeter)

    def count(self, part: Any, loss: float, scored: Scored, token: TokenLoss) -> None:
        """Add the sums of one micro-batch."""
        batch, totals = self.batch, self.totals
        mask_BT, behaviour_BT = batch.mask_BT[part], batch.behaviour_logprobs_BT[part]
        lag_BT, logprobs_BT = self.version - batch.versions_BT[part], scored.logprobs_BT.detach()
        tokens = sum(self.lengths[row] for row in part[0])
        totals["tokens"] += tokens
        totals["positions"] += tokens if self.packed else mask_BT.numel()
        totals["loss"] += loss
        totals["count"] += mask_BT.sum().item()
        totals["entropy"] += (scored.entropy_BT.detach() * mask_BT).sum().item()
        totals["clip_fraction"] += (token.clipped_BT * mask_BT).sum().item()
        totals["ratio_mean"] += (token.ratio_BT.detach() * mask_BT).sum().item()
        gap_BT = (logprobs_BT - behaviour_BT).abs() * mask_BT
        totals["behaviour_gap_mean"] += gap_BT.sum().item()
        totals["behaviour_gap_max"] = max(totals["behaviour_gap_max"], gap_BT.max().item())
        if token.weight_BT is not None:
            totals["correction_weight"] += (token.weight_BT * mask_BT).sum().item()
            totals["rejected"] += ((token.weight_BT == 0) * mask_BT).sum().item()
        if not totals["updates"]:  # the policy is still the one that began the step
            self.mismatch.add(logprobs_BT, behaviour_BT, mask_BT, lag_BT)
        self.mismatch.add_clipped(token.clipped_BT, mask_BT, lag_BT)

    def would_pad(self, batches: Iterable[list[int]]) -> None:
        """What goes through the model packed would have gone in these micro-batches."""
        self.totals["padded_positions"] += padded_positions(batches, self.lengths)

    def updated(self, norm: float, applied: bool) -> None:
        """An optimizer update is over."""
        self.totals["updates"] += 1
        self.totals["skipped_updates"] += not applied
        self.totals["grad_norm"] += norm

    def merge(self, totals: dict[str, float], mismatch: MismatchMeter) -> None:
        """Take in what another process counted of the same step, in the same updates, on other rows."""
        for name, value in totals.items():
            if name == "behaviour_gap_max":
                self.totals[name] = max(self.totals[name], value)
            elif name not in ("updates", "skipped_updates", "grad_norm"):
                self.totals[name] += value
        self.mismatch.merge(mismatch)


class Objective:
    """The loss of a :class:`LearnerConfig`, part by part."""

    def __init__(self, config: LearnerConfig, *, has_reference: bool) -> None:
        self.config = config
        self.loss = config.policy_loss()
        self.penalised = has_reference and config.kl_in == "loss"
        """Whether the divergence from the reference is part of the loss."""

    def minibatches(self, rows: int, generator: torch.Generator) -> list[list[int]]:
        """The rows of each update of one epoch."""
        count = min(self.config.updates_per_batch, rows)
        if count == 1:
            return [list(range(rows))]
        order: list[int] = torch.randperm(rows, generator=generator).tolist()
        return [order[i::count] for i in range(count)]

    def telling(self, batch: TrainBatch) -> set[int]:
        """The rows that say anything: where no token has an advantage, no loss has a gradient, and the pass is spared.
        They keep their weight in the aggregation."""
        if self.config.entropy_coef > 0 or self.penalised or self.loss.ties:
            return set(range(len(batch.mask_BT)))
        told: list[int] = (batch.advantages_BT * batch.mask_BT).any(dim=1).nonzero().flatten().tolist()
        return set(told)

    def needs_prox(self, batch: TrainBatch) -> bool:
        """Whether log π_prox has to be computed before the first update: where it is the present policy, it is known as
        soon as that policy's log-probs are; where the loss takes another, it is in the batch."""
        if not self.loss.recompute_prox or batch.prox_logprobs_BT is not None:
            return False
        return self.config.epochs > 1 or self.config.updates_per_batch > 1

    def given_prox(self, batch: TrainBatch) -> Tensor | None:
        """log π_prox as far as the batch says it."""
        return batch.prox_logprobs_BT if self.loss.recompute_prox else batch.behaviour_logprobs_BT

    def weights(self, batch: TrainBatch, rows: list[int]) -> Tensor:
        """Weight of each token in the update on ``rows``, BT, 0 in other rows; sums over parts need nothing else."""
        weights_BT = torch.zeros_like(batch.mask_BT)
        weights_BT[rows] = token_weights(batch.mask_BT[rows], self.loss.aggregation, self.loss.options.length)
        return weights_BT

    def part_loss(self, step: Step, part: Any, scored: Scored, weights_BT: Tensor) -> Tensor:
        """The share of the loss that ``part`` (an index into BT) has; counted in ``step``."""
        batch = step.batch
        prox_BT = scored.logprobs_BT.detach() if step.prox_BT is None else step.prox_BT[part]
        behaviour_BT, advantages_BT = batch.behaviour_logprobs_BT[part], batch.advantages_BT[part]
        inputs = LossInputs(scored.logprobs_BT, prox_BT, behaviour_BT, advantages_BT, batch.mask_BT[part])
        token = self.loss.per_token(inputs, self.loss.options)
        loss_BT = token.loss_BT + self._regularisation(step, part, scored)
        loss = (loss_BT * weights_BT[part]).sum()
        step.count(part, loss.item(), scored, token)
        return loss

    def _regularisation(self, step: Step, part: Any, scored: Scored) -> Tensor | float:
        """Per token: the divergence from the reference less the entropy bonus, with their coefficients."""
        c, batch, loss_BT = self.config, step.batch, None
        if c.entropy_coef:
            bonus_BT = scored.entropy_BT
            if batch.entropy_weight_BT is not None:
                bonus_BT = bonus_BT * batch.entropy_weight_BT[part]
            loss_BT = -c.entropy_coef * bonus_BT
        if step.reference_BT is not None:
            kl_BT = kl_estimate(scored.logprobs_BT, step.reference_BT[part], c.kl_estimator)
            step.totals["kl"] += (kl_BT.detach() * batch.mask_BT[part]).sum().item()
            loss_BT = c.kl_coef * kl_BT if loss_BT is None else loss_BT + c.kl_coef * kl_BT
        return 0.0 if loss_BT is None else loss_BT

    def decay(self, progress: float) -> float:
        """Factor on the learning rate when ``progress`` of the run is over."""
        return 1 + (self.config.lr_end - 1) * min(1.0, progress)

    def rise(self, updates: int) -> float:
        """Factor on the learning rate in update number ``updates``, from 1: the warm-up."""
        return min(1.0, updates / max(1, self.config.warmup_updates))

    def metrics(self, step: Step, *, lr: float, seconds: float) -> dict[str, float]:
        """``learner/…`` and ``mismatch/…`` of a whole step."""
        totals, batch = step.totals, step.batch
        count, updates = max(totals["count"], 1.0), totals["updates"]
        means = ["entropy", "clip_fraction", "ratio_mean", "behaviour_gap_mean"]
        means += ["kl"] if self.penalised else []
        means += ["correction_weight", "rejected"] if self.config.correction else []
        metrics = {name: totals[name] / count for name in means}
        metrics |= {name: totals[name] / updates for name in ("loss", "grad_norm")}
        metrics |= {name: totals[name] for name in ("behaviour_gap_max", "skipped_updates", "updates")}
        if step.packed:
            metrics["padding_spared"] = 1 - totals["tokens"] / max(totals["padded_positions"], 1.0)
        versions = batch.versions_BT[batch.mask_BT > 0]
        metrics |= {
            "lr": lr,
            "tokens": float(sum(step.lengths)),
            "response_tokens": batch.mask_BT.sum().item(),
            "padding_share": 1 - totals["tokens"] / max(totals["positions"], 1.0),
            "token_staleness": (step.version - versions.float()).mean().item() if len(versions) else 0.0,
            "step_s": seconds,
        }
        return {f"learner/{name}": float(value) for name, value in metrics.items()} | step.mismatch.values()

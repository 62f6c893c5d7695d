"""Supervised training on demonstrations: the policy learns to sample what the expert did, and only that.

The sequences are built by the same prompter that plays episodes, token for token. Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from roll_core.rollout.prompting import Prompter
from roll_core.training.demonstrations import Demonstration


@dataclass(frozen=True, slots=True)
class Sample:
    """``mask`` is the weight of each token in the loss: 1 on those to imitate."""

    tokens: tuple[int, ...]
    mask: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ImitationSettings:
    epochs: int
    batch_size: int
    lr: float
    seed: int


class ImitationLearner(Protocol):
    def sft_step(self, tokens_BT: Tensor, mask_BT: Tensor, *, lr: float | None = None) -> dict[str, float]:
        """One update towards sampling ``tokens_BT`` where the mask is 1; returns ``learner/loss``."""
        ...


def to_sample(
    demonstration: Demonstration, prompter: Prompter, max_tokens: int, *, observation_weight: float = 0.0
) -> Sample:
    """The demonstration as the policy would have experienced it, cut after ``max_tokens``.

    With ``observation_weight`` the environment's words are to be predicted as well: a model without pretraining
    learns from them what is named where, and to copy names, before the expert's few words would teach it. A slip is
    part of what happened, not of what to do."""
    tokens: list[int] = []
    mask: list[float] = []
    sampled: list[int] = []
    for i, step in enumerate(demonstration.steps):
        info = {"admissible_commands": step.admissible}
        if i == 0:
            context = prompter.opening(step.observation, info)
        else:
            context = prompter.following(step.observation, info, sampled)
        sampled = prompter.demonstrate(step.action)
        tokens += [*context, *sampled]
        mask += [*[observation_weight] * len(context), *[0.0 if step.slip else 1.0] * len(sampled)]
    mask[0] = 0.0  # nothing precedes the first token that could predict it
    return Sample(tuple(tokens[:max_tokens]), tuple(mask[:max_tokens]))


def imitate(
    learner: ImitationLearner,
    samples: Sequence[Sample],
    settings: ImitationSettings,
    *,
    on_progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> list[float]:
    """Train ``learner``'s model; returns the mean loss of each epoch. Blocks. ``on_progress``: (step, steps, loss)."""
    batches_per_epoch = math.ceil(len(samples) / settings.batch_size)
    total = settings.epochs * batches_per_epoch
    losses: list[float] = []
    step = 0
    for epoch in range(settings.epochs):
        epoch_losses = []
        for batch in _batches(samples, settings, epoch):
            metrics = learner.sft_step(*_padded(batch), lr=_lr(step, total, settings.lr))
            step += 1
            epoch_losses.append(metrics["learner/loss"])
            on_progress(step, total, epoch_losses[-1])
        losses.append(sum(epoch_losses) / len(epoch_losses))
    return losses


def _batches(samples: Sequence[Sample], settings: ImitationSettings, epoch: int) -> list[list[Sample]]:
    """Rows of similar length together, which saves half of the padding, in random order."""
    rng = random.Random(f"{settings.seed}/imitation/{epoch}")
    order = sorted(samples, key=lambda s: len(s.tokens) * rng.uniform(0.9, 1.1))
    batches = [order[i : i + settings.batch_size] for i in range(0, len(order), settings.batch_size)]
    rng.shuffle(batches)
    return batches


def _lr(step: int, total: int, peak: float) -> float:
    """A short linear rise, then a cosine to a tenth."""
    warmup = max(1, total // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


def _padded(batch: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    width = max(len(s.tokens) for s in batch)
    tokens_BT = torch.tensor([[*s.tokens, *[0] * (width - len(s.tokens))] for s in batch])
    mask_BT = torch.tensor([[*s.mask, *[0] * (width - len(s.mask))] for s in batch], dtype=torch.float32)
    return tokens_BT, mask_BT

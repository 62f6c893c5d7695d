"""Batches and models for the learners that are shared out, and what two processes are asked to do with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roll_core.learners.processes import Rank
from roll_core.models import CausalLM, ModelConfig
from roll_core.types import TrainBatch

TINY = ModelConfig(vocab=31, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=32, max_context=64)


def make_batch(seed: int = 0, rows: int = 7, width: int = 24, *, silent: tuple[int, ...] = (2,)) -> TrainBatch:
    """Rows of different lengths; every row says something else, so that ranks see different data. ``silent`` rows have
    no advantage."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, width)
    for row in range(rows):
        mask[row, 3:6] = 1
        mask[row, width - 2 * row - 4 : width - 2 * row] = 1
    behaviour = (-torch.log(torch.tensor(31.0)) + 0.3 * torch.randn(rows, width, generator=g)) * mask
    advantages = torch.randn(rows, 1, generator=g) * mask
    advantages[list(silent)] = 0.0
    return TrainBatch(
        tokens_BT=torch.randint(0, TINY.vocab, (rows, width), generator=g),
        mask_BT=mask,
        attention_BT=torch.ones(rows, width),
        behaviour_logprobs_BT=behaviour,
        advantages_BT=advantages,
        versions_BT=torch.where(mask > 0, 0, -1),
        rewards_B=torch.zeros(rows),
        group_B=torch.zeros(rows, dtype=torch.int64),
    )


def batches() -> list[TrainBatch]:
    return [make_batch(seed) for seed in range(5)]


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def policy(**changes: Any) -> CausalLM:
    from dataclasses import replace

    return CausalLM(replace(TINY, **changes), seed=1)


class Bench:
    """In a rank's process: runs whatever function it is given, with its rank."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.kept: dict[str, Any] = {}

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.rank, *args)


def fail_on_one(rank: Rank, folder: Path) -> None:
    """The second raises while the first waits for it."""
    import torch.distributed as dist

    if rank.index == 1:
        raise ValueError("this rank has had enough")
    dist.barrier()

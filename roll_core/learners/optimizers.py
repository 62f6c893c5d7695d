"""Which optimizer trains which parameter.

``adamw`` trains everything. ``muon`` trains the matrices inside the blocks by orthogonalised momentum (Muon: Jordan et
al. 2024; scaled to AdamW's update size as in Liu et al., arXiv 2502.16982, so that one learning rate serves both) and
the rest, embeddings and norms, by AdamW. It was chosen for ``recipes/alfworld-tiny.yaml`` after single trials in which
imitation came further in as many steps; the rates differed between the trials, so that is no measured comparison.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from roll_core.learners.config import LearnerConfig


def make_optimizers(model: nn.Module, config: LearnerConfig) -> list[Optimizer]:
    """The optimizers that share out the parameters of ``model``; every parameter is in exactly one group."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.optimizer == "adamw":
        return [adamw((p for _, p in named), config)]
    inner = [p for name, p in named if p.dim() == 2 and not _is_vocabulary(name)]
    outer = [p for name, p in named if p.dim() != 2 or _is_vocabulary(name)]
    muon = torch.optim.Muon(
        inner, lr=config.lr, weight_decay=config.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw(outer, config)]


def _is_vocabulary(name: str) -> bool:
    return "embed_tokens" in name or "lm_head" in name


def adamw(parameters: Iterable[nn.Parameter], config: LearnerConfig) -> Optimizer:
    """AdamW with decay on matrices only."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

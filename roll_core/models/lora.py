"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): train W + (α/r)·B·A with W frozen.

Invariants: a new adapter changes nothing (B is zero); only adapters have gradients; what leaves the learner, to engines
and to files, is :func:`plain_parameters`: merged matrices under the names of the model without adapters, so nobody else
need know of them.

Shape legend: D inputs of a layer, O outputs, R rank.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roll_core.models.qwen import CausalLM


class LoraLinear(nn.Linear):
    """A linear layer whose own weight is frozen. Made in the place of ``base``, whose parameters it takes over."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight.requires_grad_(False)
        self.bias = base.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.scale = alpha / rank
        bound = math.sqrt(3 / self.in_features)  # as nn.Linear would draw a matrix that is to keep variance
        a_RD = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a_RD.to(self.weight))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_a)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(low, self.lora_b)

    def merged(self) -> Tensor:
        """W + (α/r)·B·A, (O, D), detached."""
        product_OD = self.lora_b.detach().float() @ self.lora_a.detach().float()
        return (self.weight.detach().float() + self.scale * product_OD).to(self.weight.dtype)


def add_lora(model: CausalLM, rank: int, alpha: float, *, seed: int = 0) -> CausalLM:
    """Put an adapter on every linear layer of every block, and freeze all else. In place; returns ``model``."""
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise ValueError("the model has adapters already")
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for block in model.model.layers:
        parents: tuple[Any, ...] = (block.self_attn, block.mlp)
        for parent in parents:
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, LoraLinear(child, rank, alpha, generator))
    return model


def plain_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name and tensor of every parameter as the model without adapters has them, adapters merged; detached, on the
    model's device, and not copied where there is nothing to merge."""
    return dict(_plain(model))


def _plain(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    adapted = {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if leaf in ("lora_a", "lora_b"):
            continue
        yield name, adapted[owner].merged() if owner in adapted and leaf == "weight" else parameter.detach()


def plain_copy(model: CausalLM) -> CausalLM:
    """A model of its own, adapters merged: for critics and others that start from the policy."""
    if not any(isinstance(module, LoraLinear) for module in model.modules()):
        return copy.deepcopy(model)
    with torch.no_grad():
        plain = CausalLM(model.config).to(next(model.parameters()).device, next(model.parameters()).dtype)
        for name, tensor in plain_parameters(model).items():
            plain.get_parameter(name).copy_(tensor)
    return plain

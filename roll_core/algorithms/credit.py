"""Credit: how a trajectory's advantage is spread over its tokens, as a chain of ordinary functions.

A transform takes the credit as it stands and returns another; it goes with any advantage and any loss, because a loss
sees nothing but the result. Invariants: transforms are pure; what is 0 outside the mask stays so; a factor of 1
everywhere gives back the plain loss.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Credit:
    """``entropy_weight_BT``: factor on the entropy bonus, 1 in the mask to begin with."""

    advantages_BT: Tensor
    entropy_weight_BT: Tensor


@dataclass(frozen=True, slots=True)
class Evidence:
    """What transforms may look at. None where the roles that would know take no part."""

    mask_BT: Tensor
    entropy_BT: Tensor | None = None
    """Of the policy at the start of the update, nats."""
    value_std_BT: Tensor | None = None
    """σ over the critics, population std."""
    waad_BT: Tensor | None = None
    fai_BT: Tensor | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)


CreditTransform = Callable[[Credit, Evidence], Credit]


def transformed(credit: Credit, evidence: Evidence, chain: Iterable[CreditTransform]) -> Credit:
    """``credit`` through every transform of ``chain``, in order."""
    for transform in chain:
        credit = transform(credit, evidence)
    return credit

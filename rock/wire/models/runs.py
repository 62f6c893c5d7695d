"""Training runs and the numbers of their steps."""

from __future__ import annotations

from datetime import datetime
from math import isfinite
from typing import Any, Literal

from pydantic import Field, field_validator

from rock.wire.models.message import Message

RunStatus = Literal[
    "starting", "warm_start", "evaluating", "training", "completed", "failed", "stopped", "interrupted", "paused"
]
"""``paused``: a rule of its alerts held it back before it trained on something; it waits for a person."""


class RunCreate(Message):
    name: str
    recipe: dict[str, Any]
    total_steps: int = 0
    resumed_from: str = ""


class RunUpdate(Message):
    status: RunStatus | None = None
    detail: str | None = None
    total_steps: int | None = None
    """When the run is resumed with another number of steps to train."""
    summary: dict[str, Any] | None = None
    """Merged into the run's summary: final numbers such as success rates with their intervals."""


class RunView(Message):
    id: str
    name: str
    status: RunStatus
    detail: str = ""
    recipe: dict[str, Any]
    total_steps: int
    step: int = 0
    created_at: datetime
    updated_at: datetime
    summary: dict[str, Any] = Field(default_factory=dict)


class MetricPoint(Message):
    """The numbers of one training step. Names: ``area/name`` such as ``rollout/success``, ``staleness/mean``."""

    step: int
    at: datetime
    values: dict[str, float]
    """Numbers that are none (NaN, infinite, null) are left out: JSON has no word for them."""

    @field_validator("values", mode="before")
    @classmethod
    def _finite(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if v is not None and not (isinstance(v, float) and not isfinite(v))}

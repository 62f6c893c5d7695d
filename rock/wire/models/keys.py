"""API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from rock.wire.models.message import Message

Scope = Literal["read", "run", "admin"]


class KeyCreate(Message):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    scope: Scope = "run"
    """``read`` looks, ``run`` also leases and reports runs, ``admin`` does everything."""
    max_leases: Annotated[int, Field(ge=0)] = 0
    """Leases it may hold at once; 0: no limit of its own."""
    max_requests: Annotated[int, Field(ge=0)] = 0
    """Requests it may have under way at once; 0: no limit of its own."""


class KeyView(Message):
    id: str
    name: str
    scope: Scope
    max_leases: int
    max_requests: int
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    secret: str = ""
    """Only in the answer to its creation; what is stored is its hash."""

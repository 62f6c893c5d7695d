"""The platform as a whole: its events and its health."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from rock.wire.models.message import Message


class EventView(Message):
    id: int = 0
    at: datetime
    kind: str
    """``sandbox.failed``, ``sandbox.adopted``, ``lease.expired``, ``node.up``, ``env.built``, ``run.started``…"""
    subject: str
    detail: str = ""
    node: str = ""
    run_id: str = ""


class Health(Message):
    status: Literal["ok", "degraded"]
    instance: str
    version: str
    uptime_s: float
    pid: int
    runtime: str
    database: str
    """Kind of database, never its credentials."""
    detail: str = ""

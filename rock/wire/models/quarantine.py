"""Images and tasks that are refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from rock.wire.models.message import Message


class QuarantineView(Message):
    """An image or a task that fails again and again, and is refused instead of retried for ever."""

    kind: Literal["image", "task"]
    subject: str
    """The pool's digest, or ``environment/task``."""
    name: str
    """For people: the image's tag, the environment and the task."""
    reason: str
    failures: int
    since: datetime
    node: str = ""
    """Where it failed; several are separated by commas. Empty for a task."""
    retry_at: datetime | None = None
    """When it is tried once more; what lies in the past is on trial."""


class TaskFailure(Message):
    """``POST /v1/quarantine/tasks``: the environment itself failed at this task, through no fault of the policy."""

    env: Annotated[str, Field(min_length=1, max_length=100)]
    task: Annotated[str, Field(min_length=1, max_length=150)]
    reason: Annotated[str, Field(max_length=2000)]
    elapsed_s: Annotated[float, Field(ge=0)] = 0.0
    """How long ago the call began that failed: failures side by side count as one."""

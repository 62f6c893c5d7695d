"""Environments and their tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rock.wire.models.leases import Recovery
from rock.wire.models.message import Message


class EnvView(Message):
    name: str
    version: str
    description: str
    recovery: Recovery
    built: bool
    image: str = ""
    bundle_digest: str = ""
    splits: dict[str, int] = Field(default_factory=dict)
    """Number of tasks per split; empty until built."""
    loosened: tuple[str, ...] = ()
    build_detail: str = ""
    snapshot_every: int = 0
    """Steps between two snapshots, for one that recovers by them."""
    judge: str = ""
    """The environment that judges its submissions, in a sandbox of its own; empty: it gives rewards itself."""
    task_images: int = 0
    """Tasks that are played in an image of their own; all others are in ``image``."""
    episode_s: float = 0.0
    """Deadlines the environment declares for a whole episode, its scoring and its clean-up; 0: none."""
    scoring_s: float = 0.0
    cleanup_s: float = 0.0
    objectives: dict[str, float] = Field(default_factory=dict)
    """Within how many seconds 95 of 100 should be done, by what is measured (``open``, ``reset``, ``step``)."""


class PrefetchRequest(Message):
    """``POST /v1/envs/{name}/prefetch``: these tasks will be played soon."""

    tasks: Annotated[tuple[str, ...], Field(max_length=256)]


class PrefetchView(Message):
    images: int
    """Of the tasks that have images of their own, and of their judge's: how many every node was asked to have."""


class TaskList(Message):
    env: str
    split: str
    tasks: tuple[str, ...]

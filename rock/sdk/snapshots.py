"""Snapshots of one seat's sandbox, taken while its agent thinks.

Invariants: one is taken between two steps, and whatever comes next waits for its end; it is in the journal only when
the platform has said that it is kept; that there is none costs nothing but a longer replay, so no failure of one is
ever the caller's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from rock.domain.errors import EnvironmentError as EnvironmentFailed
from rock.domain.errors import InvalidRequest, LeaseExpired, Recovering, RockError, SandboxLost, StaleEpoch
from rock.sdk.journal import Checkpoint, Journal
from rock.sdk.lease import HeldLease

logger = logging.getLogger(__name__)

LOSSES = (SandboxLost, Recovering, StaleEpoch, LeaseExpired)
# The node gives up after 10 s; an answer that does not come is none.
_TIMEOUT_S = 15.0
_MAX_STATE_BYTES = 256 << 10
_MOST_DOUBLINGS = 6


class Snapshots:
    """``every``: how many steps lie between two; None: what the environment declares."""

    def __init__(self, held: HeldLease, journal: Journal, every: int | None, *, step_s: float) -> None:
        self._held = held
        self._journal = journal
        self._wanted = every
        self._step_s = step_s
        self._every = 0
        self._number = 0
        self._not_before = 0
        self._failures = 0
        self._work: asyncio.Task[None] | None = None
        self._forgetting: set[asyncio.Task[None]] = set()

    async def open(self, ask: Callable[[str], Awaitable[Any]]) -> None:
        """The lease was taken; ``ask`` makes a request of the environment.

        Raises InvalidRequest when the environment declares snapshots and lacks the methods for them.
        """
        lease = self._held.view
        every = lease.snapshot_every if self._wanted is None else self._wanted
        self._every = every if lease.recovery == "snapshot" else 0
        self._number = self._not_before = self._failures = 0
        if not self._every:
            return
        try:
            able = (await ask("env.hooks"))["snapshots"]
        except EnvironmentFailed:
            return  # it could not be loaded, which is for the reset to say
        if not able:
            raise InvalidRequest(
                f'environment {lease.env!r} declares recovery = "snapshot" and has no checkpoint() and restore()',
                hint="Write both (rock.guest.env.SnapshotEnv says what they do), or declare another recovery.",
            )

    def begin_if_due(self) -> None:
        """A step was answered."""
        steps = len(self._journal.actions)
        since = self._journal.checkpoint.step if self._journal.checkpoint is not None else 0
        if self._every and self._journal.worth_replaying and steps - since >= self._every and steps >= self._not_before:
            self._work = asyncio.create_task(self._take(steps), name="snapshot")

    async def settled(self) -> None:
        """Until the one under way is made, or is not."""
        if self._work is not None and not self._work.done():
            await asyncio.wait({self._work})

    def new_episode(self, before: Checkpoint | None) -> None:
        """``before``: the last one of the episode before, of no use any more."""
        self._not_before = 0
        if before is not None and self._held.active:
            task = asyncio.create_task(self._held.forget_snapshot(before.name))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)

    def close(self) -> None:
        for task in (self._work, *self._forgetting):
            if task is not None:
                task.cancel()

    async def _take(self, step: int) -> None:
        try:
            answer = await self._held.call("env.checkpoint", timeout_s=self._step_s, repeatable=True)
            state = answer["state"]
            if (size := len(orjson.dumps(state))) > _MAX_STATE_BYTES:
                raise InvalidRequest(
                    f"checkpoint() returned {size} bytes of state, the limit is {_MAX_STATE_BYTES}",
                    hint="Write it to a file, which the snapshot keeps.",
                )
            self._number += 1
            kept = await self._held.snapshot(self._number, step, timeout_s=_TIMEOUT_S)
        except LOSSES as error:
            logger.info("no snapshot after step %d: %s", step, error)
        except (InvalidRequest, EnvironmentFailed) as error:
            self._every = 0
            logger.warning("no snapshots any more, a lost sandbox is replayed from the last: %s", error)
        except RockError as error:
            self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
            self._not_before = step + self._every * 2**self._failures
            logger.warning("no snapshot after step %d, the next is due at %d: %s", step, self._not_before, error)
        else:
            self._failures = 0
            self._journal.checkpoint = Checkpoint(kept.name, step, state)

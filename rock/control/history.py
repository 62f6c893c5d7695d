"""Events and the sandboxes' last views on their way to the store: gathered here, written in batches off the hot path.

Invariants: adding never waits and never fails; what could not be written is kept and tried again, the oldest dropped
only when more than ``MAX_WAITING`` wait (and that is counted and said); readers see what is still waiting; whoever
follows is told of events once they are stored, because only then they have the id from which to resume.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from rock.control.following import Followers
from rock.domain.errors import NotFound, StorageError
from rock.domain.sandbox import SandboxState
from rock.store.fleet import FleetStore
from rock.wire.models import EventView, SandboxView

log = logging.getLogger(__name__)

MAX_WAITING = 20_000
_FLUSH_EVERY_S = 0.25
# Somebody follows: soon, but together with what comes in the same moment.
_GATHER_S = 0.02
_BATCH = 1000
_SLOW_S = 5.0
# What readers wait for what is still waiting to be stored.
_READERS_WAIT_S = 1.0
# How long a database may be unusable before that shows, even if there is nothing to store.
_CHECK_EVERY_S = 2.0


class History:
    def __init__(self, store: FleetStore, check: Callable[[], Awaitable[None]] | None = None) -> None:
        """``check``: whether something could be stored; raises StorageError."""
        self._store = store
        self._check = check
        self._checked_at = 0.0
        self._events: deque[EventView] = deque()
        self._views: dict[str, SandboxView] = {}
        self._lock = asyncio.Lock()
        self._news = asyncio.Event()
        self.followers = Followers(self)
        self.dropped = 0
        """Events that were never stored, because too many waited."""
        self.trouble = ""
        """Why nothing can be stored at present; empty when all is well."""

    def add_event(self, event: EventView) -> None:
        self._events.append(event)
        if len(self._events) > MAX_WAITING:
            self._events.popleft()
            self.dropped += 1
        if len(self.followers):
            self._news.set()
        log.info("event=%s subject=%s detail=%r", event.kind, event.subject, event.detail)

    def add_sandbox(self, view: SandboxView) -> None:
        """Only the last view of a sandbox is kept, so a busy fleet costs one row per sandbox and flush."""
        self._views[view.id] = view
        if len(self._views) > MAX_WAITING:
            self._views.pop(next(iter(self._views)))

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_EVERY_S):
                    await self._news.wait()
                self._news.clear()
                await asyncio.sleep(_GATHER_S)
            # To its end even if this loop is ended meanwhile: half done, it would write the same events twice.
            flushing = asyncio.ensure_future(self.flush())
            done, _ = await asyncio.wait({flushing}, timeout=_SLOW_S)
            if not done:
                self.trouble = f"the database is too slow: no answer within {_SLOW_S:g} s"
            with suppress(StorageError):
                await asyncio.shield(flushing)

    def __len__(self) -> int:
        """How many events and views wait to be stored."""
        return len(self._events) + len(self._views)

    async def flush(self) -> None:
        """Write what waits. Raises StorageError; then everything still waits."""
        async with self._lock:
            try:
                while self._events:
                    batch = [self._events[i] for i in range(min(_BATCH, len(self._events)))]
                    stored = await self._store.add_events(batch)
                    for event in batch:
                        if self._events and self._events[0] is event:
                            self._events.popleft()
                    self.followers.publish(stored)
                if self._views:
                    views = list(self._views.values())[:_BATCH]
                    await self._store.save_sandboxes(views)
                    for view in views:
                        if self._views.get(view.id) is view:
                            del self._views[view.id]
                await self._look()
            except StorageError as error:
                if not self.trouble:
                    log.error("history cannot be stored: %s", error)
                self.trouble = str(error)
                raise
            if self.trouble:
                log.warning("history is stored again")
            self.trouble = ""

    async def _look(self) -> None:
        """Without anything to store nobody would notice that nothing could be."""
        now = asyncio.get_running_loop().time()
        if self._check is not None and now - self._checked_at >= _CHECK_EVERY_S:
            self._checked_at = now
            await self._check()

    # --- reading

    async def _flush_soon(self) -> None:
        with suppress(StorageError, TimeoutError):
            async with asyncio.timeout(_READERS_WAIT_S):
                await asyncio.shield(asyncio.ensure_future(self.flush()))

    async def events(self, *, limit: int, kind: str, run_id: str, after: int | None) -> list[EventView]:
        await self._flush_soon()
        return await self._store.events(limit=limit, kinds=[kind] if kind else [], run_id=run_id, after=after)

    async def events_after(self, after: int, *, kinds: Sequence[str], run_id: str, limit: int) -> list[EventView]:
        return await self._store.events(limit=limit, kinds=kinds, run_id=run_id, after=after)

    async def last_event_id(self) -> int:
        await self._flush_soon()
        return await self._store.last_event_id()

    async def sandbox(self, sandbox_id: str) -> SandboxView:
        view = self._views.get(sandbox_id) or await self._store.sandbox(sandbox_id)
        if view is None:
            raise NotFound(f"no sandbox {sandbox_id!r}", hint="`rock ps` lists the living ones.")
        return view

    async def past_sandboxes(self, state: SandboxState, run_id: str) -> list[SandboxView]:
        await self._flush_soon()
        return await self._store.past_sandboxes(state=state, run_id=run_id)

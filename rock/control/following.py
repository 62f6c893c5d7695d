"""Following events as they happen: what each client still has to be told, bounded, without holes.

Invariants: a client sees the stored events that match, each once, in the order of their ids, from the id it names on;
one that takes them more slowly than they come is told so and cut when ``MAX_BEHIND`` wait for it, and comes back with
the last id it saw. So a stuck client costs the platform a few hundred events of memory and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from rock.wire.models import EventView

MAX_BEHIND = 1000
_PAGE = 500


class Lagged(Exception):
    """The client is too slow for the pace of events. No error: it resumes where it was."""


class Ended(Exception):
    """The platform stops."""


class EventSource(Protocol):
    async def events_after(
        self, after: int, *, kinds: Sequence[str], run_id: str, limit: int
    ) -> Sequence[EventView]: ...

    async def last_event_id(self) -> int: ...


class Subscription:
    def __init__(self, kinds: Sequence[str], run_id: str) -> None:
        self._kinds = frozenset(kinds)
        self._run_id = run_id
        self._waiting: deque[EventView] = deque()
        self._news = asyncio.Event()
        self._lagged = False
        self._ended = False

    def offer(self, event: EventView) -> None:
        if (self._kinds and event.kind not in self._kinds) or (self._run_id and event.run_id != self._run_id):
            return
        if len(self._waiting) >= MAX_BEHIND:
            self._lagged = True
            self._waiting.clear()  # they are stored: it will ask for them
        if not self._lagged:
            self._waiting.append(event)
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def next(self, within_s: float) -> EventView | None:
        """None: nothing happened. Raises Lagged, Ended."""
        if not self._waiting and not self._lagged and not self._ended:
            self._news.clear()
            try:
                async with asyncio.timeout(within_s):
                    await self._news.wait()
            except TimeoutError:
                return None
        if self._lagged:
            raise Lagged
        if self._waiting:
            return self._waiting.popleft()
        raise Ended


class Followers:
    """Everybody who follows."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._subscriptions: set[Subscription] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    def publish(self, events: Sequence[EventView]) -> None:
        """Stored events, with their ids."""
        for subscription in self._subscriptions:
            for event in events:
                subscription.offer(event)

    def end(self) -> None:
        self._ended = True
        for subscription in self._subscriptions:
            subscription.end()

    async def follow(
        self, *, after: int | None, kinds: Sequence[str], run_id: str, keep_alive_s: float
    ) -> AsyncGenerator[EventView | int, None]:
        """Events, and now and then the id from which to go on: at the beginning, and when nothing else is to be said.

        ``after`` None begins with what happens from now on. Raises Lagged, StorageError.
        """
        last = after if after is not None else await self._source.last_event_id()
        yield last
        subscription = Subscription(kinds, run_id)
        try:
            # A long past is read at the client's pace, before its subscription begins to count; then what came since.
            for subscribed in (False, True):
                if subscribed:
                    self._subscribe(subscription)
                more = True
                while more:
                    page = await self._source.events_after(last, kinds=kinds, run_id=run_id, limit=_PAGE)
                    for event in page:
                        yield event
                        last = event.id
                    more = len(page) == _PAGE
            while True:
                try:
                    found = await subscription.next(keep_alive_s)
                except Ended:
                    return
                if found is None:
                    yield last
                elif found.id > last:
                    yield found
                    last = found.id
        finally:
            self._subscriptions.discard(subscription)

    def _subscribe(self, subscription: Subscription) -> None:
        self._subscriptions.add(subscription)
        if self._ended:
            subscription.end()

"""The only door to the platform: reads with a deadline, and remembers the last good answer; acts when told to.

Invariants: :meth:`Source.read` never raises for what a platform can do wrong and never takes longer than
``READ_TIMEOUT_S``; a value that is not of this moment says so (``Reading.stale``); after a failure the platform is
asked at most once a second, so that a dead one does not make every part of the page wait; memory is bounded.
One source serves all visitors: ten open pages ask the platform as often as one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from rock.sdk import DeadlineExceeded, NotFound, PlatformUnavailable, Rock, RockError
from rock.sdk.home import resolve_url

T = TypeVar("T")

READ_TIMEOUT_S = 5.0
FRESH_S = 0.8  # below the quickest refresh of a page: one visitor always sees new data, many share it
QUIET_S = 1.0
REMEMBERED = 128  # answers kept; the largest is one page of episodes

Ask = Callable[[Rock, T | None], Awaitable[T]]
"""A question to the platform. It is given the last good answer, so that it can ask for what is new only."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """An answer and how far to trust it. ``value`` is None only if nothing was ever answered."""

    value: T | None
    at: datetime | None = None
    """When the value was true."""
    error: RockError | None = None
    """Why there is no newer one."""
    since: datetime | None = None
    """When the platform, or this question, first failed without a success since."""

    @property
    def stale(self) -> bool:
        return self.error is not None

    @property
    def unreachable(self) -> bool:
        return isinstance(self.error, PlatformUnavailable | DeadlineExceeded)

    @property
    def missing(self) -> bool:
        """The platform answers, and there is no such thing."""
        return isinstance(self.error, NotFound)


@dataclass(slots=True)
class _Remembered:
    value: Any = None
    known: bool = False
    at: datetime | None = None
    at_s: float = 0.0


class Source:
    """Reads one platform for all pages of a process. Thread-safe.

    Args:
        url: address of the platform; None lets the SDK find it (``ROCK_URL``, the state directory, the default).
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._rock: Rock | None = None
        self._remembered: OrderedDict[object, _Remembered] = OrderedDict()
        self._under_way: dict[object, tuple[float, Future[Any]]] = {}
        """Begun ahead of being read."""
        self._lock = threading.Lock()
        self._down_since: datetime | None = None
        self._down_error: RockError | None = None
        self._tried_s = float("-inf")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="dashboard-source", daemon=True).start()

    def read(self, key: object, ask: Ask[T], *, fresh_s: float = FRESH_S) -> Reading[T]:
        """The answer to ``ask``, remembered under ``key`` for ``fresh_s``; the last good one if it fails."""
        with self._lock:
            entry = self._remembered.get(key, _Remembered())
            now_s = time.monotonic()
            if self._down_error is not None and now_s - self._tried_s < QUIET_S:
                return Reading(entry.value, entry.at, self._down_error, self._down_since)
            if entry.known and self._down_error is None and now_s - entry.at_s < fresh_s:
                return Reading(entry.value, entry.at)
            self._tried_s = now_s
            begun = self._take_begun(key, now_s)
        try:
            value = self._result(begun or self._begin(ask, entry.value, READ_TIMEOUT_S), READ_TIMEOUT_S)
        except RockError as error:
            return self._failed(entry, error)
        return self._succeeded(key, value)

    def ahead(self, key: object, ask: Ask[T], *, fresh_s: float = FRESH_S) -> None:
        """Begin to ask what will be read in a moment, so that the answers of a page are waited for together."""
        with self._lock:
            entry = self._remembered.get(key, _Remembered())
            now_s = time.monotonic()
            fresh = entry.known and now_s - entry.at_s < fresh_s
            old_s, _ = self._under_way.get(key, (float("-inf"), None))
            if self._down_error is None and not fresh and now_s - old_s >= READ_TIMEOUT_S:
                self._under_way[key] = (now_s, self._begin(ask, entry.value, READ_TIMEOUT_S))

    def _take_begun(self, key: object, now_s: float) -> Future[Any] | None:
        """What was begun and not read yet. A page that was left in between leaves an old answer: nobody's any more."""
        begun_s, future = self._under_way.pop(key, (0.0, None))
        return future if now_s - begun_s < READ_TIMEOUT_S else None

    def act(self, do: Callable[[Rock], Awaitable[T]], *, timeout_s: float | None = None) -> T:
        """Change something, once, and wait for the answer. Raises RockError: what is changed is never retried here."""

        async def once(rock: Rock, _: T | None) -> T:
            return await do(rock)

        wait_s = READ_TIMEOUT_S if timeout_s is None else timeout_s
        try:
            return self._result(self._begin(once, None, wait_s), wait_s)
        finally:
            with self._lock:  # questions asked before it tell of the time before it
                self._under_way.clear()

    @property
    def url(self) -> str:
        """The address that was asked last, or would be asked first; empty if there is none to ask."""
        rock = self._rock
        if rock is not None:
            return rock.url
        try:
            return resolve_url(self._url)
        except PlatformUnavailable:
            return ""

    def _begin(self, ask: Ask[T], previous: T | None, timeout_s: float) -> Future[T]:
        async def bounded() -> T:
            if self._rock is None:
                # No retries: the next refresh is the retry, and the page must not wait.
                self._rock = Rock(self._url, timeout_s=READ_TIMEOUT_S, retry_s=0.0)
            async with asyncio.timeout(timeout_s):
                return await ask(self._rock, previous)

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop)

    def _result(self, future: Future[T], timeout_s: float) -> T:
        try:
            return future.result(timeout_s + 1)
        except TimeoutError as error:
            future.cancel()
            raise DeadlineExceeded(
                f"The platform did not answer within {timeout_s:.0f} s.", hint="Is the machine overloaded?"
            ) from error

    def _succeeded(self, key: object, value: T) -> Reading[T]:
        at = datetime.now(UTC)
        with self._lock:
            self._down_since = self._down_error = None
            self._remembered[key] = _Remembered(value, True, at, time.monotonic())
            self._remembered.move_to_end(key)
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return Reading(value, at)

    def _failed(self, entry: _Remembered, error: RockError) -> Reading[Any]:
        now = datetime.now(UTC)
        with self._lock:
            if not isinstance(error, PlatformUnavailable | DeadlineExceeded):
                # The platform lives and refuses this one question: nothing else on the page is affected.
                self._down_since = self._down_error = None
                return Reading(entry.value, entry.at, error, now)
            self._tried_s = time.monotonic()
            self._down_error = error
            self._down_since = self._down_since or now
            # The platform may come back at another address: the next try looks it up again.
            rock, self._rock = self._rock, None
            since = self._down_since
        if rock is not None:
            asyncio.run_coroutine_threadsafe(rock.close(), self._loop)
        return Reading(entry.value, entry.at, error, since)

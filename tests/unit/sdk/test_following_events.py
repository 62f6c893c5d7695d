"""Following events: each once and in order, through slow clients, broken connections and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rock.api import event_stream
from rock.control import following
from rock.control.following import Followers, Lagged
from rock.sdk import EventView, PlatformUnavailable

Serving = Callable[..., Any]


def event(subject: str, kind: str = "test", run_id: str = "") -> EventView:
    return EventView(at=datetime.now(UTC), kind=kind, subject=subject, run_id=run_id)


async def take(stream: Any, count: int, within_s: float = 20.0) -> list[str]:
    async with asyncio.timeout(within_s):
        return [(await anext(stream)).subject for _ in range(count)]


async def followed(served: Any, count: int = 1) -> None:
    """Until so many follow."""
    async with asyncio.timeout(20):
        while len(served.platform.control.history.followers) != count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def test_events_arrive_once_in_order_filtered_and_are_resumed(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            history = served.platform.control.history
            history.add_event(event("before"))
            async with aclosing(rock.follow(["test", "other"])) as stream:
                first = asyncio.create_task(take(stream, 3))
                await followed(served)
                for subject in ("a", "b"):
                    history.add_event(event(subject))
                history.add_event(event("not asked for", kind="else"))
                history.add_event(event("c", kind="other", run_id="r"))
                assert await first == ["a", "b", "c"]
            past = [e async for e in _first(rock.follow(["test"], after=0), 3)]
            assert [e.subject for e in past] == ["before", "a", "b"]
            again = [e async for e in _first(rock.follow(["test"], after=past[1].id), 1)]
            assert again == past[2:]
            (of_run,) = [e async for e in _first(rock.follow(run_id="r", after=0), 1)]
            assert of_run.subject == "c"
            await followed(served, 0)  # whoever hung up is forgotten

    asyncio.run(main())


async def _first(stream: Any, count: int) -> AsyncIterator[EventView]:
    async with aclosing(stream), asyncio.timeout(20):
        for _ in range(count):
            yield await anext(stream)


def test_a_platform_that_stops_ends_the_streams_and_following_says_so_when_it_stays_away(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client(retry_s=0.3) as rock:
            stream = rock.follow()
            waiting = asyncio.create_task(anext(stream))
            await followed(served)
            served.platform.control.request_shutdown()
            with pytest.raises(PlatformUnavailable):
                await asyncio.wait_for(waiting, 20)

    asyncio.run(main())


def test_the_stream_is_what_the_standard_says(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.05)

    async def main() -> None:
        async with serving() as served, httpx.AsyncClient(base_url=served.url) as http:
            served.platform.control.history.add_event(event("a"))
            url = "/v1/events/stream?after=0&kind=test"
            async with http.stream("GET", url, timeout=20) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                lines = response.aiter_lines()
                seen: list[str] = []
                while not any(line.startswith(":") and "data" in "".join(seen) for line in seen[-1:]):
                    seen.append(await anext(lines))
            (data,) = [line for line in seen if line.startswith("data:")]
            found = EventView.model_validate_json(data.removeprefix("data: "))
            assert found.subject == "a"
            assert f"id: {found.id}" == seen[seen.index(data) - 1]
            async with http.stream("GET", url, headers={"Last-Event-ID": str(found.id)}, timeout=20) as response:
                async for line in response.aiter_lines():
                    assert not line.startswith("data:")
                    if line == ": still here":
                        break
            bad = await http.get("/v1/events/stream", headers={"Last-Event-ID": "x"})
            assert bad.json()["type"] == "urn:rock:invalid-request"

    asyncio.run(main())


class Stored:
    """Events in memory, with ids as the database gives them."""

    def __init__(self) -> None:
        self.events: list[EventView] = []

    def add(self, kind: str) -> EventView:
        self.events.append(event(str(len(self.events)), kind).model_copy(update={"id": len(self.events) + 1}))
        return self.events[-1]

    async def events_after(self, after: int, *, kinds: Any, run_id: str, limit: int) -> list[EventView]:
        await asyncio.sleep(0)
        return [e for e in self.events if e.id > after and (not kinds or e.kind in kinds)][:limit]

    async def last_event_id(self) -> int:
        return len(self.events)


@asynccontextmanager
async def small_queues() -> AsyncIterator[None]:
    before = following.MAX_BEHIND, following._PAGE
    following.MAX_BEHIND, following._PAGE = 3, 2
    try:
        yield
    finally:
        following.MAX_BEHIND, following._PAGE = before


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["a", "b", "read", "read", "hang up"]), max_size=40),
    st.sampled_from([(), ("a",)]),
    st.integers(0, 5),
)
def test_whatever_the_pace_a_client_that_resumes_sees_every_event_once_in_order(
    moves: list[str], kinds: tuple[str, ...], begun_with: int
) -> None:
    async def main() -> None:
        stored = Stored()
        followers = Followers(stored)
        for _ in range(begun_with):
            stored.add("a")
        seen: list[int] = []
        last = 0
        stream = followers.follow(after=last, kinds=kinds, run_id="", keep_alive_s=0)

        async def read() -> bool:
            """Whether something was there to be read; comes back after a cut."""
            nonlocal stream, last
            try:
                found = await anext(stream)
            except Lagged:
                stream = followers.follow(after=last, kinds=kinds, run_id="", keep_alive_s=0)
                return True
            if isinstance(found, EventView):
                seen.append(found.id)
                last = found.id
                return True
            return False

        async with small_queues():
            for move in moves:
                if move == "read":
                    await read()
                elif move == "hang up":
                    await stream.aclose()
                    stream = followers.follow(after=last, kinds=kinds, run_id="", keep_alive_s=0)
                else:
                    followers.publish([stored.add(move)])
            idle = 0
            while idle < 2:
                idle = 0 if await read() else idle + 1
            await stream.aclose()
        assert seen == [e.id for e in stored.events if not kinds or e.kind in kinds]
        assert len(followers) == 0

    asyncio.run(main())


def test_a_slow_client_is_told_and_costs_a_bounded_queue() -> None:
    async def main() -> None:
        stored = Stored()
        followers = Followers(stored)
        stream = followers.follow(after=0, kinds=(), run_id="", keep_alive_s=0)
        assert await anext(stream) == 0
        assert await anext(stream) == 0  # subscribed by now
        for _ in range(following.MAX_BEHIND * 3):
            followers.publish([stored.add("a")])
        (subscription,) = followers._subscriptions
        assert len(subscription._waiting) <= following.MAX_BEHIND
        with pytest.raises(Lagged):
            await anext(stream)
        assert len(followers) == 0

    asyncio.run(main())

"""Before a lease: its time against the environment's deadlines, its key against its quota; asking twice."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from rock.control.admission import Quota, check_time
from rock.control.keys import Caller
from rock.control.once import KEEP_S, Once
from rock.domain.clock import ManualClock
from rock.domain.errors import Conflict, InvalidRequest, LeaseExpired, QuotaExceeded, StorageError
from rock.domain.leases import LeaseBook
from rock.wire.models import EnvView, LeaseRequest

times = st.floats(0, 1e6, allow_nan=False)


def env(episode_s: float, scoring_s: float, cleanup_s: float) -> EnvView:
    view = EnvView(name="toy", version="1", description="", recovery="none", built=True)
    return view.model_copy(update={"episode_s": episode_s, "scoring_s": scoring_s, "cleanup_s": cleanup_s})


@given(times, times, times, times)
def test_a_lease_is_refused_exactly_if_it_would_end_too_soon(
    needs_s: float, episode_s: float, scoring_s: float, cleanup_s: float
) -> None:
    request = LeaseRequest(env="toy", needs_s=needs_s)
    if 0 < needs_s < episode_s + scoring_s + cleanup_s:
        with pytest.raises(InvalidRequest) as caught:
            check_time(request, env(episode_s, scoring_s, cleanup_s))
        for number in (needs_s, episode_s, scoring_s, cleanup_s):
            assert f"{number:g}" in caught.value.message
        assert caught.value.hint
    else:
        check_time(request, env(episode_s, scoring_s, cleanup_s))
    check_time(request, None)


class Quotas(RuleBasedStateMachine):
    """Against the obvious model: never above the limit, never refused below it."""

    def __init__(self) -> None:
        super().__init__()
        self.quota = Quota()
        self.held = {"a": 0, "b": 0}
        self.granting = {"a": 0, "b": 0}

    grants = Bundle("grants")
    keys = st.sampled_from([("a", 2), ("b", 0)])

    @rule(target=grants, key=keys)
    def begin(self, key: tuple[str, int]) -> tuple[str, ExitStack] | None:
        name, limit = key
        stack = ExitStack()
        full = bool(limit) and self.held[name] + self.granting[name] >= limit
        try:
            stack.enter_context(self.quota.granting(Caller(name, name, "run", limit), self.held[name]))
        except QuotaExceeded:
            assert full
            return None
        assert not full
        self.granting[name] += 1
        return name, stack

    @rule(grant=consumes(grants), works=st.booleans())
    def end(self, grant: tuple[str, ExitStack] | None, works: bool) -> None:
        if grant is not None:
            name, stack = grant
            stack.close()
            self.granting[name] -= 1
            self.held[name] += works

    @rule(name=st.sampled_from(["a", "b"]))
    def release(self, name: str) -> None:
        self.held[name] = max(0, self.held[name] - 1)

    @invariant()
    def within_limits(self) -> None:
        assert self.held["a"] + self.granting["a"] <= 2
        assert dict(self.quota._granting) == {n: c for n, c in self.granting.items() if c}


TestQuotas = Quotas.TestCase


@given(st.floats(1, 100), st.floats(1, 100), st.lists(st.floats(0.1, 20), max_size=30))
def test_beating_keeps_a_lease_alive_only_as_long_as_was_asked_for(
    ttl_s: float, needs_s: float, pauses: list[float]
) -> None:
    book, now = LeaseBook(), 0.0
    book.grant("l", "s", node="n", epoch=1, ttl_s=ttl_s, now=now, ends_at=needs_s)
    last = now
    for pause in pauses:
        now += pause
        alive = now < needs_s and now < last + ttl_s
        assert bool(book.expired(now)) is not alive
        if not alive:
            with pytest.raises(LeaseExpired, match="needs_s" if now >= needs_s else "no heartbeat"):
                book.heartbeat("l", now)
            return
        book.heartbeat("l", now)
        last = now


def test_what_is_asked_twice_is_done_once() -> None:
    async def main() -> None:
        clock, done = ManualClock(), 0
        once: Once[int] = Once(clock)
        gate = asyncio.Event()

        async def work() -> int:
            nonlocal done
            await gate.wait()
            done += 1
            return done

        both = [asyncio.ensure_future(once.do("me", "k", "lease", work)) for _ in range(2)]
        await asyncio.sleep(0)
        both[0].cancel()  # who asked first hangs up
        gate.set()
        assert await both[1] == 1
        assert await once.do("me", "k", "lease", work) == 1
        assert await once.do("you", "k", "lease", work) == 2
        with pytest.raises(Conflict):
            await once.do("me", "k", "another", work)
        clock.advance(KEEP_S + 1)
        assert await once.do("me", "k", "another", work) == 3

    asyncio.run(main())


def test_what_was_withdrawn_before_it_was_asked_for_is_not_done() -> None:
    """A client that gives up says so over another connection than it asked on: the platform may read that one first."""

    async def main() -> None:
        clock, done = ManualClock(), 0
        once: Once[int] = Once(clock)

        async def work() -> int:
            nonlocal done
            done += 1
            return done

        assert await once.withdraw("me", "k") is None
        with pytest.raises(Conflict, match="withdrawn"):
            await once.do("me", "k", "lease", work)
        assert await once.do("me", "other", "lease", work) == 1
        assert await once.withdraw("me", "other") == 1
        with pytest.raises(Conflict, match="withdrawn"):  # sent twice by a client that has given up
            await once.do("me", "other", "lease", work)
        clock.advance(KEEP_S + 1)
        assert await once.do("me", "k", "lease", work) == 2

    asyncio.run(main())


def test_what_failed_is_tried_anew() -> None:
    async def main() -> None:
        once: Once[int] = Once(ManualClock())
        answers: list[int | Exception] = [StorageError("full"), 7]

        async def work() -> int:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        with pytest.raises(StorageError):
            await once.do("me", "k", "w", work)
        assert await once.do("me", "k", "w", work) == 7

    asyncio.run(main())

"""The door to the platform: remembers, has a deadline, and does not make a dead platform slow the page."""

from __future__ import annotations

import asyncio
import time

import pytest

from dashboard import source as source_module
from dashboard.source import REMEMBERED, Source
from rock.sdk import NotFound, PlatformUnavailable

GONE = PlatformUnavailable("no answer")


class Platform:
    """Answers, or fails, as told; counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.hangs = False
        self.seen: list[object] = []

    async def __call__(self, _rock, previous):
        self.asked += 1
        self.seen.append(previous)
        if self.hangs:
            await asyncio.sleep(60)
        if self.error is not None:
            raise self.error
        return self.asked


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def source(rock_home, monkeypatch) -> Source:
    monkeypatch.setattr(source_module, "QUIET_S", 0.0)
    return Source("http://127.0.0.1:9")


def test_a_fresh_answer_is_shared(source, platform):
    assert [source.read("k", platform, fresh_s=60).value for _ in range(3)] == [1, 1, 1]
    assert platform.asked == 1


def test_each_question_is_given_the_last_answer(source, platform):
    for _ in range(2):
        source.read("k", platform, fresh_s=0)
    assert platform.seen == [None, 1]


def test_a_dead_platform_leaves_the_last_answer_with_its_time_and_since_when(source, platform):
    good = source.read("k", platform, fresh_s=0)
    platform.error = GONE
    first, second = (source.read("k", platform, fresh_s=0) for _ in range(2))
    assert first.value == second.value == 1
    assert first.at == good.at
    assert first.unreachable
    assert first.since is not None
    assert second.since == first.since, "since when it fails, not since the last try"
    platform.error = None
    back = source.read("k", platform, fresh_s=0)
    assert (back.value, back.stale) == (4, False)


def test_nothing_was_ever_answered(source, platform):
    platform.error = GONE
    reading = source.read("k", platform)
    assert (reading.value, reading.at) == (None, None)


def test_a_dead_platform_is_asked_once_for_all_parts_of_a_page(source, platform, monkeypatch):
    monkeypatch.setattr(source_module, "QUIET_S", 60.0)
    platform.error = GONE
    readings = [source.read(key, platform) for key in "abcde"]
    assert platform.asked == 1
    assert all(r.unreachable for r in readings)


def test_a_refused_question_concerns_nothing_else(source, platform):
    platform.error = NotFound("no such run")
    refused = source.read("a", platform)
    assert refused.missing
    assert not refused.unreachable
    platform.error = None
    assert not source.read("b", platform).stale


def test_a_hanging_platform_is_given_up_in_time(source, platform, monkeypatch):
    monkeypatch.setattr(source_module, "READ_TIMEOUT_S", 0.2)
    platform.hangs = True
    given_up = source.read("k", platform)
    assert given_up.unreachable
    assert "did not answer within 0 s" in given_up.error.message


def test_memory_is_bounded(source, platform):
    for key in range(REMEMBERED + 10):
        source.read(key, platform)
    platform.error = GONE
    assert source.read(0, platform, fresh_s=0).value is None
    assert source.read(REMEMBERED + 9, platform, fresh_s=0).value == REMEMBERED + 10


def test_another_directorys_platform_is_never_shown(rock_home):
    source = Source()
    reading = source.read("health", lambda rock, _: rock.health())
    assert reading.unreachable
    assert str(rock_home) in reading.error.message
    assert source.url == ""


def test_nobody_at_the_address_is_unreachable_at_once(source):
    began_s = time.monotonic()
    reading = source.read("health", lambda rock, _: rock.health())
    assert reading.unreachable
    assert time.monotonic() - began_s < 3


def test_what_was_asked_ahead_is_asked_once_and_is_new(source, platform):
    source.read("k", platform, fresh_s=0)
    source.ahead("k", platform, fresh_s=0)
    source.ahead("k", platform, fresh_s=0)
    assert source.read("k", platform, fresh_s=0).value == 2
    assert source.read("k", platform, fresh_s=0).value == 3, "an answer is read once"
    source.ahead("k", platform, fresh_s=60)
    assert platform.asked == 3, "what is fresh is not asked for"


def test_what_was_asked_ahead_and_never_read_is_not_taken_for_new(source, platform, monkeypatch):
    source.ahead("k", platform, fresh_s=0)
    monkeypatch.setattr(source_module, "READ_TIMEOUT_S", 0.0)
    with source._lock:
        assert source._take_begun("k", time.monotonic()) is None


def test_an_action_is_done_once_and_its_refusal_is_raised(source, platform):
    async def do(rock):
        return await platform(rock, "act")

    assert source.act(do) == 1
    platform.error = NotFound("no sandbox 'sb-1'")
    with pytest.raises(NotFound, match="sb-1"):
        source.act(do)
    assert platform.asked == 2

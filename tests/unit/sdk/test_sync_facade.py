"""The synchronous facade offers the asynchronous client's methods, no more, no less, and cleans up after Ctrl-C."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rock.sdk import (
    EnvSession,
    EnvSessionSync,
    Forward,
    ForwardSync,
    Job,
    JobSync,
    PlatformUnavailable,
    Rock,
    RockSync,
    Sandbox,
    SandboxSync,
    Shell,
    ShellSync,
)
from rock.sdk.sync import _LoopThread

PAIRS: list[tuple[type, type]] = [
    (Rock, RockSync),
    (EnvSession, EnvSessionSync),
    (Sandbox, SandboxSync),
    (Shell, ShellSync),
    (Job, JobSync),
    (Forward, ForwardSync),
]


def public(cls: type) -> dict[str, Callable[..., Any]]:
    return {n: m for n, m in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_")}


@pytest.mark.parametrize(("original", "facade"), PAIRS)
def test_both_have_the_same_methods_with_the_same_parameters(original: type, facade: type) -> None:
    assert set(public(original)) == set(public(facade))
    for name, method in public(original).items():
        there = inspect.signature(method).parameters
        here = inspect.signature(public(facade)[name]).parameters
        if name == "upload_tar":  # an ordinary iterable in the place of an asynchronous one
            assert list(there) == list(here)
        else:
            assert list(there.values()) == list(here.values()), name
        assert public(facade)[name].__doc__, name


@pytest.mark.parametrize("cls", [cls for pair in PAIRS for cls in pair])
def test_every_public_method_has_a_text(cls: type) -> None:
    assert all(method.__doc__ for method in public(cls).values())


def test_errors_arrive_in_the_calling_thread() -> None:
    with RockSync("http://127.0.0.1:1", retry_s=0) as rock, pytest.raises(PlatformUnavailable):
        rock.health()


def test_closing_ends_the_thread_and_may_be_repeated() -> None:
    rock = RockSync("http://127.0.0.1:1", retry_s=0)
    before = {t.name for t in threading.enumerate()}
    assert "rock-sdk" in before
    rock.close()
    rock.close()
    assert rock._loop.stopped


def test_an_interrupt_cancels_the_call_and_waits_for_its_clean_up() -> None:
    cleaned = threading.Event()
    started = threading.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()

    def interrupt() -> None:
        started.wait(10)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    loop = _LoopThread()
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        loop.run(work())
    assert cleaned.is_set()
    loop.stop()

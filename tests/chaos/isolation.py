"""Everything that would let the real world into a simulated run, replaced for as long as it lasts: clocks, chance,
the machine's load, threads of the database driver, sockets of the guests, HTTP."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from unittest import mock

import aiosqlite.core
import httpx
import psutil
from memory_guest import GuestLoop, MemoryServer
from virtual_loop import VirtualLoop

import rock.control.leases
import rock.node.load
import rock.runtimes.fake

_MEMORY = SimpleNamespace(total=16 << 30, available=12 << 30, used=4 << 30, percent=25.0)


class _Inline:
    """The queue of aiosqlite's thread: what is put into it is done at once."""

    def put_nowait(self, item: tuple[Any, Callable[[], Any]]) -> None:
        future, function = item
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - handed to whoever waits, as the thread does
            if future is not None:
                future.set_exception(error)
        else:
            if future is not None:
                future.set_result(result)


class _NoThread:
    def __init__(self, **_: Any) -> None:
        self.daemon = True

    def start(self) -> None:
        pass

    def join(self) -> None:
        pass


class _NoThreads:
    Thread = _NoThread


@contextlib.contextmanager
def isolated(loop: VirtualLoop, seed: int, http: Callable[..., Any]) -> Iterator[None]:
    """``http`` makes what the SDK uses as its HTTP client."""
    numbers = itertools.count(1)

    def token(nbytes: int | None = None) -> str:
        """Ids tell the order in which they were made."""
        return f"{next(numbers):0{2 * (nbytes or 4)}x}"

    dates = SimpleNamespace(now=lambda zone: datetime.fromtimestamp(loop.time(), zone))
    before = random.getstate()
    random.seed(seed)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (time, "monotonic", loop.time),
            (secrets, "token_hex", token),
            (secrets, "token_urlsafe", token),
            (psutil, "virtual_memory", lambda: _MEMORY),
            (psutil, "cpu_times", lambda: _CPU),
            (os, "getloadavg", lambda: (0.0, 0.0, 0.0)),
            (rock.node.load, "_runnable", lambda: 0),
            (rock.control.leases, "datetime", dates),
            (aiosqlite.core, "SimpleQueue", _Inline),
            (aiosqlite.core, "Thread", _NoThread),
            (rock.runtimes.fake, "Loop", GuestLoop),
            (rock.runtimes.fake, "Server", MemoryServer),
            (rock.runtimes.fake, "threading", _NoThreads),
            (httpx, "AsyncClient", http),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        try:
            yield
        finally:
            random.setstate(before)


_CPU = psutil.cpu_times()

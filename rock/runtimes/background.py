"""Work of many minutes in a thread that holds up neither anybody else's calls nor the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")


async def in_daemon_thread(function: Callable[..., T], *args: Any) -> T:
    """What it returns or raises. Who is cancelled here stops waiting, and the work goes on."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(value: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, value))

    def work() -> None:
        value, failed = None, None
        try:
            value = function(*args)
        except Exception as error:  # noqa: BLE001 - handed over to whoever waits
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, value, failed)

    threading.Thread(target=work, daemon=True, name="background").start()
    return await done

"""The platform a command talks to: how it is asked, and what is said when it is not there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rock.sdk import Rock

T = TypeVar("T")

# A person waits: long enough for a platform that is just starting, too short to wonder.
RETRY_S = 0.5


def ask(work: Callable[[Rock], Awaitable[T]]) -> T:
    """Run ``work`` with a client of the platform; Ctrl-C cancels it, and what it holds is released."""
    from rock.sdk import PlatformUnavailable

    try:
        return ask_at(None, work)
    except PlatformUnavailable as error:
        raise _with_history(error) from error


def ask_at(url: str | None, work: Callable[[Rock], Awaitable[T]]) -> T:
    """The same for the platform at ``url``."""
    from rock.sdk import Rock

    async def main() -> T:
        async with Rock(url, retry_s=RETRY_S) as rock:
            return await work(rock)

    return asyncio.run(main())


def _with_history(error: Exception) -> Exception:
    """The same error, saying that a platform did run here if one did."""
    from rock.sdk import PlatformUnavailable
    from rock.sdk.home import read_server, rock_home

    server = read_server(rock_home())
    if os.environ.get("ROCK_URL") or server is None or server.alive or not isinstance(error, PlatformUnavailable):
        return error
    if server.guarded:
        return PlatformUnavailable(
            f"The platform at {server.url} (process {server.pid}) has died and is being started again.",
            hint="Try again in a moment; `rock logs` shows why.",
            cause=error.cause,
        )
    if server.gave_up:
        return PlatformUnavailable(server.gave_up, hint="`rock logs` shows its last words; then: rock up -d")
    return PlatformUnavailable(
        f"The platform that ran at {server.url} (process {server.pid}, since {server.started_at:%Y-%m-%d %H:%M}) "
        "is gone without having been stopped.",
        hint="Start it again with `rock up -d`: it takes over what still runs. Or clean up with `rock down`.",
        cause=error.cause,
    )

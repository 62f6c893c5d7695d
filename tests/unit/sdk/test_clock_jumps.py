"""Somebody, or NTP, sets the machine's clock while episodes are played: nothing expires or recovers because of it."""

from __future__ import annotations

import asyncio
import datetime as datetimes
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

Serving = Callable[..., AbstractAsyncContextManager[Any]]
HOUR_S = 3600.0
_TTL_S = 1.5


class SetClock:
    """The wall clock of everything in `rock`, ``ahead_s`` of the real one; the monotonic ones go on as they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        self.read = 0
        clock = self
        real_time, real = time.time, datetimes.datetime

        class Shifted(real):  # type: ignore[valid-type, misc]
            @classmethod
            def now(cls, tz: datetimes.tzinfo | None = None) -> datetimes.datetime:
                clock.read += 1
                return real.now(tz) + datetimes.timedelta(seconds=clock.ahead_s)

        monkeypatch.setattr(time, "time", lambda: real_time() + clock.ahead_s)
        for name, module in list(sys.modules.items()):
            if name.startswith("rock.") and getattr(module, "datetime", None) is real and "models" not in name:
                monkeypatch.setattr(module, "datetime", Shifted)


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S])
def test_nothing_expires_or_recovers_when_the_clock_is_set(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    clock = SetClock(monkeypatch)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving() as served, served.client() as rock:
            async with rock.env("toy", task="1000", ttl_s=_TTL_S, needs_s=600.0) as env:
                await env.reset()
                sandbox, lease = env.sandbox_id, env.lease
                waiting = {view.id for view in await rock.sandboxes() if view.state == "ready"}
                clock.ahead_s, set_at = ahead_s, loop.time()
                while loop.time() < set_at + 2 * _TTL_S:  # time in which a lease that is not kept would end twice
                    await env.step("go")
                    await asyncio.sleep(0.02)
                assert clock.read > 0
                assert (env.sandbox_id, env.lease.epoch, env.recoveries) == (sandbox, lease.epoch, [])
                assert waiting <= {view.id for view in await rock.sandboxes()}, "what waits in a pool grew old"
                (node,) = await rock.nodes()
                assert node.standing == "up"
                kinds = {event.kind for event in await rock.events()}
                assert not kinds & {
                    "lease.expired",
                    "lease.lost",
                    "lease.recovering",
                    "sandbox.failed",
                    "sandbox.fenced",
                    "node.suspect",
                }
            assert await rock.leases() == []

    asyncio.run(main())

"""The one clock of rollout: the event loop's own. In production it is ``time.monotonic``; in simulation it is virtual,
and everything that measures or waits follows it without knowing."""

from __future__ import annotations

import asyncio


def now_s() -> float:
    return asyncio.get_running_loop().time()

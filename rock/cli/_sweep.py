"""What an instance left behind on this machine: found by its label, in every runtime that can be used here."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

from rock.cluster.settings import instance_of
from rock.domain.errors import RockError
from rock.runtimes.base import Observed, Runtime
from rock.runtimes.select import make_runtime

logger = logging.getLogger(__name__)

REAL_RUNTIMES = ("docker", "bubblewrap")


async def usable_runtimes(home: Path) -> AsyncIterator[Runtime]:
    """Those that work on this machine, each closed after its turn."""
    instance = instance_of(home)
    for name in REAL_RUNTIMES:
        runtime = make_runtime(name, instance, home)
        try:
            if (await runtime.check()).ok:
                yield runtime
        finally:
            await runtime.close()


async def left_behind(home: Path) -> list[tuple[str, Observed]]:
    """Every sandbox of this home's instance, with its runtime's name."""
    if not (home / "instance").exists():
        return []
    return [(runtime.name, seen) async for runtime in usable_runtimes(home) for seen in await runtime.list_owned()]


async def sweep(home: Path) -> int:
    """Remove them all; returns how many there were. A sandbox that resists does not keep the others."""
    if not (home / "instance").exists():
        return 0
    removed = 0
    first_error: RockError | None = None
    async for runtime in usable_runtimes(home):
        for seen in await runtime.list_owned():
            try:
                await runtime.stop(seen.handle)
                removed += 1
            except RockError as error:
                logger.warning("sandbox %s was not removed: %s", seen.sandbox_id, error)
                first_error = first_error or error
    if first_error is not None:
        raise first_error
    return removed

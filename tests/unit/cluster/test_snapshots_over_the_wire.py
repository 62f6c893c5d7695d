"""Snapshots of a node behind a wire: fenced, bounded, and never left behind by an answer that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rock.domain.errors import Conflict, DeadlineExceeded, InvalidRequest, NotFound, StaleEpoch, StorageError
from rock.wire.models import SNAPSHOT_PREFIX, SandboxSpec

World = Callable[..., Any]

WRITABLE = SandboxSpec(image="plain", read_only=False)
NAME = f"{SNAPSHOT_PREFIX}ls-1-2-1"


def test_a_snapshot_is_made_for_the_present_epoch_only_started_from_and_removed(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            await f.claim(epoch=2, spec=WRITABLE)
            for epoch in (1, 3):
                with pytest.raises(StaleEpoch):
                    await f.remote.snapshot("ls-1", epoch=epoch, name=NAME)
            with pytest.raises(NotFound):
                await f.remote.snapshot("ls-2", epoch=1, name=NAME)
            assert await f.remote.snapshot("ls-1", epoch=2, name=NAME) > 0
            assert await f.remote.snapshots() == (NAME,)
            made_of_it = await f.claim("ls-1", epoch=3, spec=WRITABLE.model_copy(update={"image": NAME}))
            with pytest.raises(Conflict):
                await f.remote.remove_snapshot(NAME)
            await f.remote.release(made_of_it.id, reason="done")

            async def removed() -> bool:
                try:
                    await f.remote.remove_snapshot(NAME)
                except Conflict:
                    return False
                return True

            await f.until(removed)
            assert await f.remote.snapshots() == ()
            # Nobody else will ever want a sandbox of it: it has no warm pool, and the pool itself is forgotten.
            await f.until(lambda: not any(pool.spec.from_snapshot for pool in f.node._fleet.pools.values()))

    asyncio.run(main())


def test_what_cannot_be_kept_is_refused(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            await f.claim("ls-1")
            with pytest.raises(InvalidRequest, match="read-only"):
                await f.remote.snapshot("ls-1", epoch=1, name=NAME)
            await f.claim("ls-2", spec=WRITABLE)
            f.runtime.faults.disk_used = 0.93
            with pytest.raises(StorageError, match="93% full"):
                await f.remote.snapshot("ls-2", epoch=1, name=NAME)
            assert await f.remote.snapshots() == ()

    asyncio.run(main())


def test_one_that_takes_too_long_is_given_up_and_removed_when_it_is_there(far: World) -> None:
    async def main() -> None:
        async with far(snapshot_timeout_s=0.1) as f:
            await f.remote.adopt([])
            await f.claim(spec=WRITABLE)
            f.runtime.faults.snapshot_delay_s = 0.4
            with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
                await f.remote.snapshot("ls-1", epoch=1, name=NAME)
            kept: list[str] = []
            remove = f.runtime.remove_snapshot

            async def noted(name: str) -> None:
                kept.extend(f.runtime.kept)
                await remove(name)

            f.runtime.remove_snapshot = noted
            await f.until(lambda: kept == [NAME])
            await f.until(lambda: not f.runtime.kept)

    asyncio.run(main())


def test_a_remote_node_has_time_for_a_slow_one_and_no_more(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            await f.claim(spec=WRITABLE)
            f.remote._timing = replace(f.remote._timing, snapshot_s=0.1)
            f.runtime.faults.snapshot_delay_s = 5.0
            with pytest.raises(DeadlineExceeded):
                await f.remote.snapshot("ls-1", epoch=1, name=NAME)
            f.runtime.faults.snapshot_delay_s = 0.0

    asyncio.run(main())

"""What sandboxes take, and the end of those that take too much of the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rock.domain.errors import NotFound
from rock.wire.models import Limits, SandboxSpec

Make = Callable[..., Any]
MIB = 1 << 20
WRITABLE = SandboxSpec(image="plain", read_only=False, limits=Limits(disk_bytes=8 * MIB))


def test_one_that_writes_beyond_its_limit_is_ended_and_its_neighbours_are_not(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            small = await w.claim(WRITABLE)
            roomy = await w.claim(WRITABLE.model_copy(update={"limits": Limits(disk_bytes=64 * MIB)}))
            plain = await w.claim()
            w.runtime.faults.written_bytes = 8 * MIB  # not a byte more than it may have
            stats = await w.until(lambda: _with_disk(w, small.id))
            assert (stats.disk_bytes, stats.disk_limit_bytes) == (8 * MIB, 8 * MIB)
            assert w.last(small.id).state == "leased"
            w.runtime.faults.written_bytes = 9 * MIB
            await w.until(lambda: w.last(small.id).state in ("failed", "gone"))
            evidence = w.last(small.id).evidence
            assert evidence.cause == "disk_quota"
            assert "9 MiB" in evidence.detail
            assert "limit of 8 MiB" in evidence.detail
            assert {w.last(other.id).state for other in (roomy, plain)} == {"leased"}
            assert (await w.node.stats(plain.id)).disk_bytes is None

    asyncio.run(main())


async def _with_disk(w: Any, sandbox_id: str) -> Any:
    stats = await w.node.stats(sandbox_id)
    return stats if stats.disk_bytes else None


def test_one_that_does_not_live_has_no_usage(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim()
            assert (await w.node.stats(view.id)).memory_limit_bytes == Limits().memory_bytes
            await w.node.release(view.id, reason="test")
            with pytest.raises(NotFound):
                await w.node.stats(view.id)
            with pytest.raises(NotFound):
                await w.node.stats("sb-none")

    asyncio.run(main())

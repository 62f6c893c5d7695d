"""Why did it die? What the node has seen and the runtime can still tell, gathered within a bounded time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from rock.domain.errors import RockError
from rock.node.record import Record
from rock.runtimes.base import Observed, Runtime
from rock.wire.models import Evidence, Pressure

log = logging.getLogger(__name__)

LAST_LINES = 30
# A connection ends some milliseconds before the runtime knows of the death.
SETTLE_S = 1.5
_RUNTIME_TIMEOUT_S = 5.0
_UNKNOWN = Observed(sandbox_id="", handle="", running=True)
# As the kernel kills, seen by Docker or by bubblewrap; None: nobody knows how it ended.
_KILLED = frozenset({137, -9, None})
# A kill for memory this long before the end is another story: a child's, earlier.
_OOM_RECENT_S = 10.0


async def observe(runtime: Runtime, record: Record, *, settle_s: float = SETTLE_S) -> Observed | None:
    """What the runtime sees, waiting ``settle_s`` for it to notice a death. None: nothing of it is left.

    A runtime that does not answer says nothing about the sandbox: then it counts as running.
    """
    deadline = asyncio.get_running_loop().time() + settle_s
    pause_s = 0.02
    while True:
        observed = await _inspect(runtime, record)
        if observed is None or not observed.running or asyncio.get_running_loop().time() >= deadline:
            return observed
        await asyncio.sleep(pause_s)
        pause_s = min(0.25, pause_s * 2)


async def gather(
    runtime: Runtime, record: Record, observed: Observed | None, cause: str, detail: str, pressure: Pressure
) -> Evidence:
    """``cause`` and ``detail`` are what the caller saw; what the runtime knows for certain comes first."""
    health = record.health
    now = asyncio.get_running_loop().time()
    oom_killed = health.oom_kills > 0 or (observed is not None and (observed.oom_killed or observed.oom_kills > 0))
    known = Evidence(
        cause=cause,
        detail=detail,
        oom_killed=oom_killed,
        probes=tuple(health.probes),
        pressure=pressure,
        detected_after_s=round(now - health.heard_at, 3) if health.heard_at is not None else None,
    )
    if not record.handle:
        return known
    if observed is None:
        removed = "it was removed from outside the platform, and its output with it"
        return known.model_copy(update={"cause": "removed", "detail": removed})
    lines, unread = await _last_lines(runtime, record)
    recent = health.oom_at is None or now - health.oom_at < _OOM_RECENT_S
    if not observed.running and oom_killed and recent and observed.exit_code in _KILLED:
        cause, detail = "oom", f"it used more than its {record.spec.limits.memory_bytes >> 20} MiB of memory"
    elif not observed.running and cause not in ("env_dead", "disk_quota"):
        cause = "exited"
    elif observed.paused and "paused" not in detail:
        detail = f"{detail}; it is paused" if detail else "it is paused"
    return known.model_copy(
        update={
            "cause": cause,
            "detail": "; ".join(part for part in (detail, unread) if part),
            "exit_code": observed.exit_code,
            "last_output": tuple(lines),
        }
    )


async def _inspect(runtime: Runtime, record: Record) -> Observed | None:
    try:
        async with asyncio.timeout(_RUNTIME_TIMEOUT_S):
            return await runtime.inspect(record.handle)
    except (RockError, TimeoutError) as error:
        log.warning("sandbox=%s inspect failed: %s", record.id, error)
        return _UNKNOWN


async def _last_lines(runtime: Runtime, record: Record) -> tuple[Sequence[str], str]:
    """The lines, or why there are none: the runtime's words are not the sandbox's."""
    try:
        async with asyncio.timeout(_RUNTIME_TIMEOUT_S):
            return await runtime.logs(record.handle, LAST_LINES), ""
    except (RockError, TimeoutError) as error:
        log.warning("sandbox=%s output could not be read: %s", record.id, error)
        return (), "its output could not be read"

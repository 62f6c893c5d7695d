"""What each sandbox takes: processor, memory, processes when somebody asks; its files on the disk all the time.

Invariants: one that has more on the disk than its limit is ended, as one that runs out of memory is; the looks together
take at most ``_DISK_SHARE`` of a processor, however many sandboxes there are and however many files they have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from rock.domain.clock import Clock
from rock.domain.disk_quota import LONGEST_S, SHORTEST_S, next_look_s
from rock.domain.errors import NotFound, RockError
from rock.domain.sandbox import SandboxState
from rock.node.egress import EgressProxies
from rock.node.fleet import Fleet
from rock.node.record import Record
from rock.runtimes.base import Runtime
from rock.wire.models import SandboxStats

log = logging.getLogger(__name__)

_LIVING = frozenset({SandboxState.READY, SandboxState.LEASED, SandboxState.SUSPECT})
_DISK_SHARE = 0.05
# A sample this young is given again: who asks often does not make the share of a processor mere noise.
_YOUNG_S = 1.0
_MIB = 1 << 20


@dataclass(slots=True)
class _Disk:
    """The last look at a sandbox's files."""

    due_at: float
    used: int | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    stats: SandboxStats


class UsageBook:
    """``fail(record, cause, detail)`` ends a sandbox."""

    def __init__(
        self,
        runtime: Runtime,
        fleet: Fleet,
        clock: Clock,
        fail: Callable[[Record, str, str], Awaitable[None]],
        egress: EgressProxies,
    ) -> None:
        self._runtime = runtime
        self._fleet = fleet
        self._clock = clock
        self._fail = fail
        self._egress = egress
        self._disks: dict[str, _Disk] = {}
        self._samples: dict[str, _Sample] = {}

    # --- when somebody asks

    async def stats(self, record: Record) -> SandboxStats:
        """Raises NotFound for one that does not live; what the runtime's ``usage`` raises."""
        now, last = self._clock.now(), self._samples.get(record.id)
        lives = record.state in _LIVING
        if lives and last is not None and now - last.at < _YOUNG_S:
            return last.stats
        usage = await self._runtime.usage(record.handle) if lives else None
        if usage is None:
            raise NotFound(
                f"sandbox {record.id} is {record.state}: nothing runs in it that could be measured",
                hint="`rock inspect` shows what is known of it.",
            )
        cpu_s, since_s = (
            (last.stats.cpu_s, now - last.at)
            if last is not None
            else (0.0, now - record.ready_at + (record.start_s or 0))
        )
        disk, limits = self._disks.get(record.id), record.spec.limits
        used = disk.used if disk is not None else None
        way_out = self._egress.counts(record.id)
        stats = SandboxStats(
            at=datetime.now(UTC),
            cpu_s=round(usage.cpu_s, 3),
            cpu_share=round(max(0.0, usage.cpu_s - cpu_s) / max(since_s, 1e-3), 3),
            memory_bytes=usage.memory_bytes,
            memory_limit_bytes=limits.memory_bytes,
            pids=usage.pids,
            disk_bytes=used,
            disk_limit_bytes=limits.disk_bytes if used is not None else None,
            egress_bytes=way_out.bytes,
            egress_refused=way_out.refused,
        )
        self._samples[record.id] = _Sample(now, stats)
        return stats

    # --- all the time

    async def watch_disks(self) -> None:
        """The loop that looks at what sandboxes write, the one that may reach its limit soonest first."""
        while True:
            self._forget()
            now = self._clock.now()
            due = [r for r in self._fleet.records.values() if r.state in _LIVING and self._disk(r).due_at <= now]
            for record in sorted(due, key=lambda one: self._disk(one).due_at):
                began = self._clock.now()
                try:
                    await self._look(record)
                except RockError as error:
                    log.warning("sandbox=%s what it wrote could not be measured: %s", record.id, error)
                    self._disk(record).due_at = now + LONGEST_S
                await asyncio.sleep((self._clock.now() - began) * (1 / _DISK_SHARE - 1))
            await asyncio.sleep(SHORTEST_S)

    def _disk(self, record: Record) -> _Disk:
        return self._disks.setdefault(record.id, _Disk(due_at=self._clock.now()))

    async def _look(self, record: Record) -> None:
        disk, limit = self._disk(record), record.spec.limits.disk_bytes
        used = await self._runtime.written(record.handle, limit)
        now = self._clock.now()
        if used is None:
            disk.due_at = float("inf")
            return
        speed = (used - disk.used) / max(now - disk.at, 1e-3) if disk.used is not None else 0.0
        disk.used, disk.at = used, now
        disk.due_at = now + next_look_s(used, limit, speed)
        if used > limit and record.state in _LIVING:
            detail = (
                f"it had {used / _MIB:.0f} MiB on the disk when this was seen, more than its limit of "
                f"{limit / _MIB:.0f} MiB (disk_mb)"
            )
            await self._fail(record, "disk_quota", detail)

    def _forget(self) -> None:
        for book in (self._disks, self._samples):
            for sandbox_id in [one for one in book if one not in self._fleet.records]:
                del book[sandbox_id]

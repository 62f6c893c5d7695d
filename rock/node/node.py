"""The node as control sees it (`rock.wire.handle.NodeHandle`): claims, releases, views, adoption, the end.

A claim from the warm pool costs one message to the guest (``bind``); a miss waits in line for the next sandbox that
becomes ready. Neither path does any I/O besides, so that handing out a sandbox takes a millisecond or two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from rock.domain.clock import Clock, MonotonicClock
from rock.domain.errors import (
    CapacityExceeded,
    Conflict,
    DeadlineExceeded,
    ImageNotFound,
    InvalidRequest,
    NotFound,
    PlatformUnavailable,
    RockError,
    RuntimeUnavailable,
    SandboxLost,
    StorageError,
)
from rock.domain.sandbox import LIVING, SandboxState
from rock.domain.sizing import PoolLimits
from rock.node.adoption import Adoption, PoolNotes
from rock.node.config import NodeConfig
from rock.node.fleet import Fleet
from rock.node.gateway import Gateway
from rock.node.prefetching import Prefetcher
from rock.node.record import Grant, Pool, Record, Waiter
from rock.node.snapshots import SnapshotTaker
from rock.node.supervisor import Supervisor
from rock.runtimes.base import Runtime
from rock.wire.handle import HeldLease
from rock.wire.models import (
    Endpoint,
    EventView,
    ExecRequest,
    ExecResult,
    NodeView,
    QuarantineView,
    SandboxSpec,
    SandboxStats,
    SandboxView,
)

log = logging.getLogger(__name__)

_BIND_TIMEOUT_S = 5.0
_EXEC_GRACE_S = 5.0
_LOG_TIMEOUT_S = 2.0
_USABLE = frozenset({SandboxState.LEASED, SandboxState.SUSPECT})


class Node:
    def __init__(
        self, config: NodeConfig, runtime: Runtime, *, clock: Clock | None = None, rng: random.Random | None = None
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._fleet = Fleet(config, runtime.name, clock or MonotonicClock(), rng or random.Random())
        self._supervisor = Supervisor(config, runtime, self._fleet)
        self._snapshots = SnapshotTaker(config, runtime, self._fleet)
        self._prefetcher = Prefetcher(runtime)
        self._gateway = Gateway(self._fleet)
        self._started_at = datetime.now(UTC)
        self._closed = False

    @property
    def name(self) -> str:
        return self._config.name

    @property
    def default_image(self) -> str:
        return self._runtime.default_image

    async def open(self) -> None:
        """Raises RuntimeUnavailable with the remedy when the runtime cannot be used here."""
        availability = await self._runtime.check()
        if not availability.ok:
            raise RuntimeUnavailable(
                f"the runtime {self._runtime.name!r} cannot be used: {availability.detail}", hint=availability.remedy
            )
        self._supervisor.detail = availability.detail
        await asyncio.to_thread(_make_private_dir, self._config.run_dir)
        await self._gateway.open(self._config.gateway_host)

    async def adopt(self, held: Sequence[HeldLease]) -> Sequence[str]:
        adopted = await Adoption(self._config, self._runtime, self._fleet, self._supervisor).adopt(held)
        self._supervisor.run()
        return adopted

    # --- claims

    async def claim(
        self, spec: SandboxSpec, *, lease_id: str, token_sha256: str, epoch: int, run_id: str, wait_s: float
    ) -> SandboxView:
        if self._closed:
            raise PlatformUnavailable(f"node {self.name} is shutting down")
        grant = Grant(lease_id, token_sha256, epoch, run_id)
        pool = self._fleet.pool(spec)
        self._fleet.quarantine.check(pool)
        pool.claims += 1
        pool.sizer.note_claim(self._fleet.clock.now())
        if isinstance(pool.last_error, ImageNotFound | InvalidRequest):
            pool.last_error = None
            pool.backoff.succeeded()  # it may have been built since: each claim gets its own try
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            record = self._fleet.take_ready(pool, grant)
            self._supervisor.wake()
            if record is None:
                record = await self._wait(pool, grant, deadline, wait_s)
            if await self._hand_over(record, epoch):
                pool.backoff.succeeded()
                return self._fleet.view(record)

    async def _wait(self, pool: Pool, grant: Grant, deadline: float, wait_s: float) -> Record:
        waiter = Waiter(grant, asyncio.get_running_loop().create_future())
        self._fleet.wait(pool, waiter)
        self._supervisor.wake()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter.future
        except TimeoutError:
            self._withdraw(waiter)
            raise self._no_sandbox(pool, wait_s) from pool.last_error
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        finally:
            self._fleet.give_up(pool, waiter)

    def _withdraw(self, waiter: Waiter) -> None:
        """The claim gave up in the very moment it was served: what it got must not stay leased to nobody."""
        if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
            self._supervisor.release(waiter.future.result())

    async def _hand_over(self, record: Record, epoch: int) -> bool:
        """False when it turned out dead; the claim then goes on to the next."""
        if record.client is not None:
            try:
                await record.client.call("bind", epoch=epoch, timeout_s=_BIND_TIMEOUT_S)
            except (SandboxLost, DeadlineExceeded) as error:
                log.info("sandbox=%s died in the pool: %s", record.id, error)
            except asyncio.CancelledError:
                await self.release(record.id, reason="the claim was cancelled")
                raise
            else:
                return record.state in _USABLE
        await self._supervisor.fail(record, "guest_lost", "its guest did not answer when it was handed over")
        return False

    def _no_sandbox(self, pool: Pool, wait_s: float) -> RockError:
        error = pool.last_error
        if isinstance(error, RuntimeUnavailable | StorageError):
            return type(error)(error.message, hint=error.hint, cause=error.cause)
        what = f"environment {pool.spec.env!r}" if pool.spec.env else f"image {pool.spec.image!r}"
        counts = self._fleet.counts()
        total = sum(counts.values())
        message = (
            f"no sandbox of {what} within {wait_s:g} s: {pool.starting} starting, "
            f"{self._fleet.waiting(pool)} other claims waiting, "
            f"{pool.backoff.failures} failed in a row; node {self.name} has {total} of at most {self._config.capacity}"
        )
        if error is not None:
            return CapacityExceeded(
                message,
                hint=f"The last one failed: {error.message}",
                cause=error.cause or error.message,
            )
        return CapacityExceeded(message, hint="Wait longer (wait_s), release leases, or raise the node's capacity.")

    async def release(self, sandbox_id: str, *, reason: str) -> None:
        record = self._fleet.records.get(sandbox_id)
        if record is None or record.state not in LIVING:
            return
        if record.grant is not None:
            self._gateway.sandbox_ended(record)
        if record.state is SandboxState.STARTING:
            raise Conflict(f"sandbox {sandbox_id} is starting", hint="Wait until it is ready, or drain its pool.")
        log.debug("sandbox=%s released: %s", sandbox_id, reason)
        self._supervisor.release(record)

    async def set_pool(self, spec: SandboxSpec, target: int, *, minimum: int = 0, maximum: int = 0) -> None:
        least = max(target, minimum)
        if min(target, minimum) < 0 or least > self._config.capacity:
            raise InvalidRequest(f"a pool of {least} does not fit: the node holds {self._config.capacity} sandboxes")
        pool = self._fleet.pool(spec)
        pool.sizer.limits = PoolLimits(target, minimum, min(maximum, self._config.capacity))
        pool.sizer.used_at = self._fleet.clock.now()
        await asyncio.to_thread(PoolNotes(self._config.run_dir).note, spec, pool.sizer.limits)
        self._supervisor.wake()

    async def fence(self, leases: Mapping[str, int]) -> Sequence[str]:
        ended = []
        for record in list(self._fleet.records.values()):
            if record.state not in _USABLE or record.grant is None:
                continue
            if leases.get(record.grant.lease_id, record.grant.epoch + 1) > record.grant.epoch:
                await self.release(record.id, reason="its lease ended or moved to another sandbox")
                ended.append(record.id)
        return ended

    async def snapshot(self, lease_id: str, *, epoch: int, name: str) -> int:
        return await self._snapshots.take(lease_id, epoch, name)

    async def remove_snapshot(self, name: str) -> None:
        await self._runtime.remove_snapshot(name)

    async def snapshots(self) -> Sequence[str]:
        return await self._runtime.snapshots()

    async def prefetch(self, images: Sequence[str]) -> None:
        if not self._closed:
            self._prefetcher.ask(images)

    async def quarantine(self) -> Sequence[QuarantineView]:
        return self._fleet.quarantine.views()

    async def restore_quarantine(self, views: Sequence[QuarantineView]) -> None:
        self._fleet.quarantine.restore(views)

    async def clear_quarantine(self, subject: str) -> bool:
        cleared = self._fleet.quarantine.clear(subject, "somebody cleared it")
        if cleared and (pool := self._fleet.pools.get(subject)) is not None:
            pool.backoff.succeeded()
            pool.image_version = None
            self._supervisor.wake()
        return cleared

    # --- looking and one-off work

    def endpoint(self, sandbox_id: str) -> Endpoint:
        return Endpoint(
            node=self.name,
            socket_path=str(self._config.run_dir / sandbox_id / "guest.sock"),
            gateway_host=self._gateway.host,
            gateway_port=self._gateway.port,
        )

    async def view(self) -> NodeView:
        memory = psutil.virtual_memory()
        counts = self._fleet.counts()
        return NodeView(
            name=self.name,
            runtime=self._runtime.name,
            healthy=self._supervisor.healthy,
            detail=self._supervisor.detail,
            sandboxes=dict(counts),
            capacity=self._config.capacity,
            cpu_percent=self._supervisor.host.cpu.percent,
            pressure=self._supervisor.host.pressure,
            step_p50_s=self._supervisor.detector.paces.step_p50_s(),
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            pools=tuple(pool.view(self._fleet.waiting(pool)) for pool in self._fleet.pools.values()),
            claims=self._fleet.claims,
            failures=self._fleet.failures,
            started_at=self._started_at,
            starting=counts[SandboxState.STARTING],
            max_starting=self._config.max_starting,
            quarantined=self._fleet.quarantine.subjects(),
        )

    async def sandboxes(self) -> Sequence[SandboxView]:
        return [self._fleet.view(record) for record in self._fleet.records.values()]

    async def sandbox(self, sandbox_id: str) -> SandboxView:
        return self._fleet.view(self._record(sandbox_id))

    def _record(self, sandbox_id: str) -> Record:
        record = self._fleet.records.get(sandbox_id)
        if record is None:
            raise NotFound(f"no sandbox {sandbox_id!r} on node {self.name}", hint="`rock ps` lists the living ones.")
        return record

    async def exec(self, sandbox_id: str, request: ExecRequest) -> ExecResult:
        record = self._record(sandbox_id)
        if record.state not in _USABLE or record.client is None:
            raise Conflict(
                f"sandbox {sandbox_id} is {record.state}, not leased",
                hint="Commands run in leased sandboxes only: what waits in the warm pool must stay untouched. "
                "`rock sandbox create` leases one.",
            )
        where: dict[str, Any] = {"cwd": request.cwd} if request.cwd else {}
        value = await record.client.call(
            "exec",
            timeout_s=request.timeout_s + _EXEC_GRACE_S,
            work_s=request.timeout_s,
            argv=list(request.argv),
            max_output_bytes=request.max_output_bytes,
            **where,
        )
        return ExecResult.model_validate(value)

    async def stats(self, sandbox_id: str) -> SandboxStats:
        return await self._supervisor.usage.stats(self._record(sandbox_id))

    async def logs(self, sandbox_id: str, lines: int) -> Sequence[str]:
        record = self._record(sandbox_id)
        if record.client is not None and not record.client.closed:
            with contextlib.suppress(SandboxLost, DeadlineExceeded):
                value = await record.client.call("log", lines=lines, timeout_s=_LOG_TIMEOUT_S)
                return [str(line) for line in value["lines"]]
        if record.evidence is not None:
            return record.evidence.last_output[-lines:]
        return await self._runtime.logs(record.handle, lines) if record.handle else []

    # --- listeners and the end

    def on_change(self, callback: Callable[[SandboxView], None]) -> None:
        self._fleet.on_change(callback)

    def on_event(self, callback: Callable[[EventView], None]) -> None:
        self._fleet.on_event(callback)

    def refuse_claims(self) -> None:
        """From now on claims fail, and those that wait fail now."""
        self._closed = True
        for pool in self._fleet.pools.values():
            self._fleet.refuse_waiting(pool, PlatformUnavailable(f"node {self.name} is shutting down"))

    async def close(self, *, keep_sandboxes: bool = False) -> None:
        self.refuse_claims()
        await self._gateway.close()
        await self._prefetcher.close()
        await self._supervisor.close()
        for record in self._fleet.records.values():
            if record.client is not None:
                await record.client.close()
        try:
            if not keep_sandboxes:
                await self._remove_everything()
                await self._snapshots.remove_all()
        finally:
            await self._snapshots.close()
            await self._runtime.close()

    async def _remove_everything(self) -> None:
        """Whatever carries our instance's id, whether or not it is in our book."""
        owned = await self._runtime.list_owned()
        results = await asyncio.gather(*(self._runtime.stop(o.handle) for o in owned), return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._config.run_dir, ignore_errors=True)
        for record in list(self._fleet.records.values()):
            if record.state in LIVING:
                if record.state is SandboxState.REQUESTED:
                    self._fleet.move(record, SandboxState.STARTING)
                self._fleet.release(record)
            self._fleet.forget(record)
        failed = [r for r in results if isinstance(r, BaseException)]
        if failed:
            raise failed[0]


def _make_private_dir(path: Path) -> None:
    """Whoever may enter it can speak to every guest."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)

"""The node's reconcile loops: start what is missing, remove what is over, find out what died.

Level-triggered: every loop compares what should be with what is, and can be ended at any line and run again. Runtime
events, ended connections and new claims only wake a loop earlier. Nothing here blocks a claim from the warm pool.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from rock.domain.errors import (
    DeadlineExceeded,
    ImageBuildFailed,
    ImageNotFound,
    InvalidRequest,
    RockError,
    RuntimeUnavailable,
    StorageError,
)
from rock.domain.sandbox import SandboxState
from rock.node import evidence, starting
from rock.node.config import NodeConfig
from rock.node.detector import HELD, Detector
from rock.node.egress import EgressProxies
from rock.node.fleet import Fleet
from rock.node.load import SAMPLE_EVERY_S, HostMeter
from rock.node.quarantine import QuarantineNote
from rock.node.record import Record
from rock.node.usage import UsageBook
from rock.runtimes.base import Runtime
from rock.runtimes.shared import used_bytes
from rock.wire.guest_client import GuestClient

log = logging.getLogger(__name__)

_S = SandboxState
_OVER = frozenset({_S.RELEASED, _S.FAILED})
# Sixteen containers released at once, on two cores that had work for sixteen, were all gone after 4.2 s one by one,
# 1.2 to 2.1 s by four, 0.9 to 1.2 s by eight, and 0.8 s by sixteen.
_MAX_REMOVING = 16
_PACE_EVERY_S = 1.0
_RUNTIME_TIMEOUT_S = 30.0
# An image that is here is found in milliseconds.
_TELL_OF_IMAGE_S = 1.0


class Supervisor:
    def __init__(self, config: NodeConfig, runtime: Runtime, fleet: Fleet) -> None:
        self._config = config
        self._runtime = runtime
        self._fleet = fleet
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._launches: set[asyncio.Task[str]] = set()
        self._removing = asyncio.Semaphore(_MAX_REMOVING)
        self.host = HostMeter(config.run_dir)
        self.detector = Detector(config, runtime, fleet, self.host, self._spawn, self.wake)
        self.egress = EgressProxies(fleet, config.run_dir)
        self.usage = UsageBook(runtime, fleet, fleet.clock, self.detector.fail, self.egress)
        self.healthy = True
        self.detail = ""

    def run(self) -> None:
        """Start the loops."""
        self._spawn(self._plan_loop())
        self._spawn(self._every(self._config.reconcile_interval_s, self.reconcile))
        self._spawn(self.detector.probe())
        self._spawn(self.usage.watch_disks())
        self._spawn(self._every(_PACE_EVERY_S, self.detector.check_pace))
        self._spawn(self._every(SAMPLE_EVERY_S, self._measure))
        self._spawn(self._every(self._config.image_check_s, self._refresh_images))
        self._spawn(self._watch())
        self._spawn(self._note_quarantine())

    async def _measure(self) -> None:
        await self.host.sample()
        self._fleet.memory_share = self.host.pressure.memory

    def wake(self) -> None:
        self._wake.set()

    async def close(self) -> None:
        """End the loops and everything under way; sandboxes stay as they are."""
        await self.egress.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._launches:
            await asyncio.wait(self._launches, timeout=_RUNTIME_TIMEOUT_S)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside the loops, and end with them."""
        self._spawn(work)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the node ended with an error", exc_info=error)

    async def _every(self, interval_s: float, action: Any) -> None:
        while True:
            try:
                await action()
            except RockError as error:
                log.warning("node=%s %s", self._config.name, error)
            await asyncio.sleep(interval_s)

    async def _note_quarantine(self) -> None:
        quarantine, note = self._fleet.quarantine, QuarantineNote(self._config.run_dir)
        while True:
            await quarantine.changed.wait()
            quarantine.changed.clear()
            await asyncio.to_thread(note.write, quarantine.views())

    # --- starting and removing

    async def _plan_loop(self) -> None:
        while True:
            self._wake.clear()
            self._act_on_plan()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._next_look_s()):
                    await self._wake.wait()

    def _next_look_s(self) -> float:
        now = self._fleet.clock.now()
        retries = [p.backoff.retry_at - now for p in self._fleet.pools.values() if p.backoff.failures]
        return max(0.01, min([1.0, *(r for r in retries if r > 0)]))

    def _act_on_plan(self) -> None:
        plan = self._fleet.plan()
        for digest, count in plan.evictions.items():
            for record in list(self._fleet.pools[digest].ready)[:count]:
                self.release(record)
        for digest, count in plan.starts.items():
            for _ in range(count):
                self._spawn(self._start(self._fleet.request(self._fleet.pools[digest].spec)))
        for record in [r for r in self._fleet.records.values() if r.state in _OVER and not r.removing]:
            record.removing = True
            self._spawn(self._remove(record))

    async def _start(self, record: Record) -> None:
        pool = self._fleet.pool(record.spec)
        began_at = self._fleet.clock.now()
        record.health.heard_at = asyncio.get_running_loop().time()
        try:
            limit_s = self._config.start_timeout_s
            await self._have_image(record)
            client = await starting.start(self._runtime, pool, record, limit_s, self._launches)
        except (ImageNotFound, InvalidRequest, ImageBuildFailed) as error:
            pool.image_version = None
            self._fleet.fail(record, await self.detector.evidence(record, None, "start_failed", str(error)), error)
            self._fleet.refuse_waiting(pool, error)
        except (RockError, OSError) as error:
            await self._start_failed(record, error)
        else:
            self.detector.hold(record, client)
            self._fleet.became_ready(record, self._fleet.clock.now() - began_at)
        finally:
            self.wake()

    async def _have_image(self, record: Record) -> None:
        """Look it up, and have it fetched and made if it must be: minutes, of which events tell. Raises ImageNotFound,
        ImageBuildFailed, RuntimeUnavailable."""
        pool, image = self._fleet.pool_of(record), record.spec.image
        if pool.image_version is not None:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        telling = loop.call_later(
            _TELL_OF_IMAGE_S, self._fleet.emit, "image.making", image, f"for sandbox {record.id}; the log tells more"
        )
        record.awaits_image = True
        self.wake()
        try:
            pool.image_version = await self._runtime.ensure_image(image)
        except ImageBuildFailed as error:
            self._fleet.emit("image.failed", image, str(error))
            raise
        finally:
            record.awaits_image = False
            telling.cancel()
        if (took_s := loop.time() - began) > _TELL_OF_IMAGE_S:
            self._fleet.emit("image.made", image, f"in {took_s:.1f} s")

    async def _start_failed(self, record: Record, error: RockError | OSError) -> None:
        cause = "start_timeout" if isinstance(error, DeadlineExceeded) else "start_failed"
        observed = await evidence.observe(self._runtime, record, settle_s=0) if record.handle else None
        found = await self.detector.evidence(record, observed, cause, str(error))
        pool_error = error if isinstance(error, RockError) else _disk_error(error)
        if isinstance(pool_error, RuntimeUnavailable):
            self._set_health(False, str(pool_error))
        elif found.last_output:
            pool_error = type(pool_error)(
                pool_error.message, hint=pool_error.hint, cause="\n".join(found.last_output[-5:])
            )
        self._fleet.fail(record, found, pool_error)

    async def _refresh_images(self) -> None:
        """What waits of an image that was built anew under its old name is replaced."""
        for pool in list(self._fleet.pools.values()):
            if pool.ready or self._fleet.quarantine.refuses(pool.digest):
                with suppress(ImageNotFound):
                    version = await self._runtime.ensure_image(pool.spec.image)
                    for record in self._fleet.image_is(pool, version):
                        self.release(record)
                    self.wake()

    def release(self, record: Record) -> None:
        self._fleet.release(record)
        self.wake()

    async def _remove(self, record: Record) -> None:
        try:
            async with self._removing:
                if record.client is not None:
                    await record.client.close()
                if record.handle:
                    async with asyncio.timeout(_RUNTIME_TIMEOUT_S):
                        await self._runtime.stop(record.handle)
                await asyncio.to_thread(shutil.rmtree, record.shared_dir, ignore_errors=True)
        except (RockError, TimeoutError) as error:
            log.warning("sandbox=%s could not be removed, will be tried again: %s", record.id, error)
            await asyncio.sleep(self._config.reconcile_interval_s)
            record.removing = False
        else:
            self._fleet.forget(record)
            self.wake()

    # --- noticing death: the detector's work, and its door for the node

    def hold(self, record: Record, client: GuestClient) -> None:
        """Watch over a sandbox whose guest has answered."""
        self.detector.hold(record, client)

    async def examine(self, record: Record, why: str) -> None:
        """Find out whether it is dead, because somebody has reason to think so."""
        await self.detector.examine(record, why)

    async def fail(self, record: Record, cause: str, detail: str) -> None:
        """Treat it as dead for a reason the caller saw."""
        await self.detector.fail(record, cause, detail)

    async def _watch(self) -> None:
        while True:
            try:
                async for event in self._runtime.watch():
                    self.detector.on_runtime_event(event)
            except RockError as error:
                log.warning("node=%s the runtime's events ended: %s", self._config.name, error)
            await asyncio.sleep(self._config.reconcile_interval_s)

    # --- the full comparison, behind all of the above

    async def reconcile(self) -> None:
        """Compare our book with what the runtime has: find silent deaths and orphans."""
        known = set(self._fleet.records)  # what is removed while the runtime makes its list is no orphan
        held = [r for r in self._fleet.records.values() if r.state in HELD]
        try:
            async with asyncio.timeout(_RUNTIME_TIMEOUT_S):
                owned = {o.sandbox_id: o for o in await self._runtime.list_owned()}
        except (RockError, TimeoutError) as error:
            self._set_health(False, f"the runtime does not answer: {error}")
            return
        self._set_health(True, "")
        for record in held:
            observed = owned.get(record.id)
            if observed is None or not observed.running:
                await self.detector.examine(record, "the periodic comparison found it dead")
            else:
                self.detector.note_oom(record, observed.oom_kills)
                await self._check_disk(record)
        for sandbox_id, observed in owned.items():
            if sandbox_id not in known and sandbox_id not in self._fleet.records:
                log.warning("sandbox=%s is an orphan; removing it", sandbox_id)
                self._fleet.emit("sandbox.orphan", sandbox_id, "no lease or pool wants it; removed")
                await self._runtime.stop(observed.handle)
        self._fleet.drop_idle_pools()
        self.wake()

    async def _check_disk(self, record: Record) -> None:
        limit = self._config.shared_dir_bytes
        if await asyncio.to_thread(used_bytes, record.shared_dir, limit) > limit:
            await self.fail(record, "disk", f"it filled the directory it shares with the host beyond {limit >> 20} MiB")

    def _set_health(self, healthy: bool, detail: str) -> None:
        if healthy != self.healthy:
            self._fleet.emit("node.up" if healthy else "node.down", self._config.name, detail)
        self.healthy, self.detail = healthy, detail


def _disk_error(error: OSError) -> StorageError:
    return StorageError(f"a sandbox could not be started: {error}", hint="Free some space there.", cause=str(error))

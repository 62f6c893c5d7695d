"""Another sandbox for a lease that lost its own: claimed on a node that may have it, under an epoch of its own.

Begun as soon as anybody reports the loss, so that it is mostly done when the holder asks. Every wait has a limit; what
was claimed for a lease that has ended meanwhile is released at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from rock.control.lease_records import LeaseRecords
from rock.control.nodes import NodeBook
from rock.domain.backoff import Backoff, BackoffPolicy
from rock.domain.clock import Clock
from rock.domain.errors import ImageNotFound, InvalidRequest, NotFound, PlatformUnavailable, Quarantined, RockError
from rock.domain.leases import LeaseBook
from rock.domain.sandbox import SandboxState
from rock.store.fleet import StoredLease
from rock.wire.handle import NodeHandle

log = logging.getLogger(__name__)

HELD = frozenset({SandboxState.LEASED, SandboxState.SUSPECT})
RECOVERY_WAIT_S = 60.0
# One node that has nothing, or hangs, must not cost the whole time: then another is asked.
_ATTEMPT_WAIT_S = 15.0
_CLAIM_GRACE_S = 5.0
# A released sandbox tells nobody how it failed. Its node takes 0.1 s to find out about a death, 2 s about a freeze.
_EVIDENCE_WAIT_S = 4.0
_HOPELESS = (ImageNotFound, InvalidRequest, Quarantined)


class Rebinding:
    """``claims`` are the claims under way by lease, with their epoch; ``done(lease, why, took_s)`` and
    ``given_up(lease_id, why)`` are told how it ended."""

    def __init__(
        self,
        nodes: NodeBook,
        book: LeaseBook,
        records: LeaseRecords,
        claims: dict[str, int],
        clock: Clock,
        *,
        done: Callable[[StoredLease, str, float], None],
        given_up: Callable[[str, str], None],
    ) -> None:
        self._nodes = nodes
        self._book = book
        self._records = records
        self._claims = claims
        self._clock = clock
        self._done = done
        self._given_up = given_up
        self._running: dict[str, asyncio.Task[None]] = {}
        self._leftovers: set[asyncio.Task[None]] = set()
        self._condemned: dict[str, asyncio.Event] = {}

    def begin(self, lease: StoredLease, why: str) -> None:
        """Find ``lease``, which is unbound now, another sandbox; end the one it had."""
        self.discard(lease.node, lease.sandbox_id, why)
        task = asyncio.get_running_loop().create_task(self._rebind(lease, why), name=f"rebind {lease.id}")
        self._running[lease.id] = task
        task.add_done_callback(lambda ended: self._ended(lease.id, ended))

    def _ended(self, lease_id: str, task: asyncio.Task[None]) -> None:
        if self._running.get(lease_id) is task:
            del self._running[lease_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("lease=%s its recovery ended with an error", lease_id, exc_info=error)
            self._given_up(lease_id, f"its recovery failed: {error!r}")

    async def wait(self, lease_id: str, wait_s: float) -> None:
        """Until its present recovery has ended, well or not, or ``wait_s`` have passed."""
        task = self._running.get(lease_id)
        if task is not None:
            await asyncio.wait({task}, timeout=wait_s)

    def cancel(self, lease_id: str) -> None:
        """The lease has ended."""
        task = self._running.pop(lease_id, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        tasks = [*self._running.values(), *self._leftovers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the replacement

    async def _rebind(self, lease: StoredLease, why: str) -> None:
        began = self._clock.now()
        deadline = asyncio.get_running_loop().time() + RECOVERY_WAIT_S
        backoff = Backoff(BackoffPolicy(base_s=0.1, cap_s=2.0), random.Random())
        tried: set[str] = set()
        while (epoch := self._book.attempt(lease.id)) is not None:
            left_s = deadline - asyncio.get_running_loop().time()
            try:
                moved = await self._attempt(lease, epoch, min(_ATTEMPT_WAIT_S, max(0.1, left_s)), tried)
            except (RockError, TimeoutError) as error:
                pause_s = backoff.failed(self._clock.now())
                left_s = deadline - asyncio.get_running_loop().time() - pause_s
                if left_s <= 0 or isinstance(error, _HOPELESS):
                    self._given_up(lease.id, f"{why}; no other could take its place: {error}")
                    return
                log.info("lease=%s epoch=%d no replacement yet: %s", lease.id, epoch, error)
                await asyncio.sleep(pause_s)
                continue
            if moved is not None:
                await self._records.move(moved)
                self._done(moved, why, self._clock.now() - began)
            return

    async def _attempt(self, lease: StoredLease, epoch: int, wait_s: float, tried: set[str]) -> StoredLease | None:
        """None if the lease ended meanwhile."""
        node = await self._choose(lease, tried)
        self._claims[lease.id] = epoch
        try:
            async with asyncio.timeout(wait_s + _CLAIM_GRACE_S):
                sandbox = await node.claim(
                    lease.spec,
                    lease_id=lease.id,
                    token_sha256=lease.token_sha256,
                    epoch=epoch,
                    run_id=lease.run_id,
                    wait_s=wait_s,
                )
            held = self._book.rebind(lease.id, sandbox.id, node=node.name, epoch=epoch)
        finally:
            if self._claims.get(lease.id) == epoch:
                del self._claims[lease.id]
        if held is None:
            await node.release(sandbox.id, reason="its lease has ended")
            return None
        return replace(lease, sandbox_id=sandbox.id, node=node.name, epoch=epoch, recoveries=held.recoveries)

    async def _choose(self, lease: StoredLease, tried: set[str]) -> NodeHandle:
        """One that was not tried in vain yet, if there is one."""
        try:
            node = await self._nodes.choose(lease.spec, avoid=tried)
        except PlatformUnavailable:
            if not tried:
                raise
            tried.clear()
            node = await self._nodes.choose(lease.spec)
        tried.add(node.name)
        return node

    # --- the lost one

    def discard(self, node: str, sandbox_id: str, why: str) -> None:
        """End a sandbox that lost its lease, whether or not its node thinks so already."""
        if node not in self._nodes:
            return
        over = self._condemned[sandbox_id] = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._discard(node, sandbox_id, over, why))
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)

    def condemned(self, sandbox_id: str) -> bool:
        """Whether it is about to be ended: it lost its lease, and its node may still find out how it failed."""
        return sandbox_id in self._condemned

    def sandbox_over(self, sandbox_id: str) -> None:
        """The node's hint that it has ended."""
        if (over := self._condemned.get(sandbox_id)) is not None:
            over.set()

    async def _discard(self, node_name: str, sandbox_id: str, over: asyncio.Event, why: str) -> None:
        node = self._nodes.get(node_name)
        try:
            async with asyncio.timeout(_EVIDENCE_WAIT_S):
                if (await node.sandbox(sandbox_id)).state in HELD:
                    await over.wait()
        except NotFound:
            pass
        except (RockError, TimeoutError):
            # A node that does not answer now is compared with the book again and again.
            with suppress(RockError):
                await node.release(sandbox_id, reason=f"lost: {why}")
        finally:
            self._condemned.pop(sandbox_id, None)

"""Another sandbox for a lease that lost its own: claimed on a node that may have it, under an epoch of its own.

It is made of the lease's snapshot if there is one, first on the node that has it; if that cannot be, as new.

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
from rock.control.snapshots import Snapshots
from rock.domain.backoff import Backoff, BackoffPolicy
from rock.domain.clock import Clock
from rock.domain.errors import ImageNotFound, InvalidRequest, NotFound, PlatformUnavailable, Quarantined, RockError
from rock.domain.leases import LeaseBook
from rock.domain.sandbox import SandboxState
from rock.store.fleet import StoredLease
from rock.wire.handle import NodeHandle
from rock.wire.models import SandboxSpec, SnapshotView

log = logging.getLogger(__name__)

HELD = frozenset({SandboxState.LEASED, SandboxState.SUSPECT})
RECOVERY_WAIT_S = 60.0
# One node that has nothing, or hangs, must not cost the whole time: then another is asked.
_ATTEMPT_WAIT_S = 15.0
_CLAIM_GRACE_S = 5.0
# A released sandbox tells nobody how it failed. Its node takes 0.1 s to find out about a death, 2 s about a freeze.
_EVIDENCE_WAIT_S = 4.0
_HOPELESS = (ImageNotFound, InvalidRequest, Quarantined)
# A snapshot that will not start is not worth the whole wait: the episode can be replayed from the start.
_SNAPSHOT_TRIES = 2


class Rebinding:
    """``claims`` are the claims under way by lease, with their epoch; ``done(lease, why, took_s, lost)`` and
    ``given_up(lease_id, why)`` are told how it ended."""

    def __init__(
        self,
        nodes: NodeBook,
        book: LeaseBook,
        records: LeaseRecords,
        snapshots: Snapshots,
        claims: dict[str, int],
        clock: Clock,
        *,
        done: Callable[[StoredLease, str, float, bool], None],
        given_up: Callable[[str, str], None],
    ) -> None:
        self._nodes = nodes
        self._book = book
        self._records = records
        self._snapshots = snapshots
        self._claims = claims
        self._clock = clock
        self._done = done
        self._given_up = given_up
        self._running: dict[str, asyncio.Task[None]] = {}
        self._leftovers: set[asyncio.Task[None]] = set()
        self._condemned: dict[str, asyncio.Event] = {}

    def begin(self, lease: StoredLease, why: str, *, lost: bool = True) -> None:
        """Find ``lease``, which is unbound now, another sandbox; end the one it had, ``lost`` or in the way."""
        self.discard(lease.node, lease.sandbox_id, why, evidence_s=_EVIDENCE_WAIT_S if lost else 0.0)
        task = asyncio.get_running_loop().create_task(self._rebind(lease, why, lost), name=f"rebind {lease.id}")
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

    async def _rebind(self, lease: StoredLease, why: str, lost: bool) -> None:
        began = self._clock.now()
        deadline = asyncio.get_running_loop().time() + RECOVERY_WAIT_S
        backoff = Backoff(BackoffPolicy(base_s=0.1, cap_s=2.0), random.Random())
        tried: set[str] = set()
        while (epoch := self._book.attempt(lease.id)) is not None:
            left_s = deadline - asyncio.get_running_loop().time()
            snapshot = (self._records.get(lease.id) or lease).snapshot
            try:
                moved = await self._attempt(lease, epoch, min(_ATTEMPT_WAIT_S, max(0.1, left_s)), tried)
            except (RockError, TimeoutError) as error:
                pause_s = backoff.failed(self._clock.now())
                if await self._without_snapshot(lease.id, snapshot, error, backoff.failures):
                    tried.clear()
                    continue
                left_s = deadline - asyncio.get_running_loop().time() - pause_s
                if left_s <= 0 or isinstance(error, _HOPELESS):
                    self._given_up(lease.id, f"{why}; no other could take its place: {error}")
                    return
                log.info("lease=%s epoch=%d no replacement yet: %s", lease.id, epoch, error)
                await asyncio.sleep(pause_s)
                continue
            if moved is not None:
                await self._records.move(moved)
                self._done(moved, why, self._clock.now() - began, lost)
            return

    async def _attempt(self, lease: StoredLease, epoch: int, wait_s: float, tried: set[str]) -> StoredLease | None:
        """None if the lease ended meanwhile."""
        lease = self._records.get(lease.id) or lease  # its snapshot may be another by now
        spec = _spec(lease)
        node = await self._choose(lease, spec, tried)
        self._claims[lease.id] = epoch
        try:
            async with asyncio.timeout(wait_s + _CLAIM_GRACE_S):
                sandbox = await node.claim(
                    spec,
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
        lease = self._records.get(lease.id) or lease
        return replace(lease, sandbox_id=sandbox.id, node=node.name, epoch=epoch, spec=spec, recoveries=held.recoveries)

    async def _choose(self, lease: StoredLease, spec: SandboxSpec, tried: set[str]) -> NodeHandle:
        """One that was not tried in vain yet, if there is one; first of all the one that has the snapshot."""
        node = None
        if spec.from_snapshot and lease.snapshot is not None and lease.snapshot.node not in tried:
            with suppress(PlatformUnavailable):
                others = {each.name for each in self._nodes if each.name != lease.snapshot.node}
                node = await self._nodes.choose(spec, avoid=others)
        if node is None:
            try:
                node = await self._nodes.choose(spec, avoid=tried)
            except PlatformUnavailable:
                if not tried:
                    raise
                tried.clear()
                node = await self._nodes.choose(spec)
        tried.add(node.name)
        return node

    async def _without_snapshot(
        self, lease_id: str, tried: SnapshotView | None, error: RockError | TimeoutError, failures: int
    ) -> bool:
        """Whether the next try is made without the snapshot that was ``tried``, because it will not do."""
        lease = self._records.get(lease_id)
        if lease is None or tried is None:
            return False
        if lease.snapshot is None or lease.snapshot.name != tried.name:
            return True  # it was removed under the attempt
        if failures < _SNAPSHOT_TRIES and not isinstance(error, _HOPELESS):
            return False
        log.warning("lease=%s goes on without its snapshot %s: %s", lease_id, lease.snapshot.name, error)
        await self._snapshots.forget(lease_id, lease.snapshot.name)
        return True

    # --- the lost one

    def discard(self, node: str, sandbox_id: str, why: str, *, evidence_s: float = _EVIDENCE_WAIT_S) -> None:
        """End a sandbox that lost its lease, whether or not its node thinks so already: it has ``evidence_s`` to."""
        if node not in self._nodes:
            return
        over = self._condemned[sandbox_id] = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._discard(node, sandbox_id, over, why, evidence_s))
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)

    def condemned(self, sandbox_id: str) -> bool:
        """Whether it is about to be ended: it lost its lease, and its node may still find out how it failed."""
        return sandbox_id in self._condemned

    def sandbox_over(self, sandbox_id: str) -> None:
        """The node's hint that it has ended."""
        if (over := self._condemned.get(sandbox_id)) is not None:
            over.set()

    async def _discard(self, node_name: str, sandbox_id: str, over: asyncio.Event, why: str, evidence_s: float) -> None:
        node = self._nodes.get(node_name)
        try:
            async with asyncio.timeout(evidence_s):
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


def _spec(lease: StoredLease) -> SandboxSpec:
    if lease.snapshot is None:
        return lease.fresh_spec
    return lease.spec.model_copy(update={"image": lease.snapshot.name})

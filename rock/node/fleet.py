"""The node's book of its sandboxes and pools. Synchronous: every change is whole before anyone else runs.

Invariants: a sandbox is handed to at most one claim, and only from *ready*; claims of a pool are served in the order
they came; a claim that gave up gets nothing; everyone who listens hears of every change of state.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from rock.domain.clock import Clock
from rock.domain.errors import RockError
from rock.domain.pools import Plan, PoolState, plan, wanted_ready
from rock.domain.sandbox import LIVING, SandboxState, transition
from rock.node.config import NodeConfig
from rock.node.record import Grant, Pool, Record, Waiter
from rock.wire.models import EventView, Evidence, SandboxSpec, SandboxView

log = logging.getLogger(__name__)


class Fleet:
    def __init__(self, config: NodeConfig, runtime: str, clock: Clock, rng: random.Random) -> None:
        self.config = config
        self.clock = clock
        self._runtime = runtime
        self._rng = rng
        self.records: dict[str, Record] = {}
        self.pools: dict[str, Pool] = {}
        self._by_lease: dict[str, Record] = {}
        self._on_change: list[Callable[[SandboxView], None]] = []
        self._on_event: list[Callable[[EventView], None]] = []
        self.claims = 0
        self.failures = 0

    # --- listeners

    def on_change(self, callback: Callable[[SandboxView], None]) -> None:
        self._on_change.append(callback)

    def on_event(self, callback: Callable[[EventView], None]) -> None:
        self._on_event.append(callback)

    def emit(self, kind: str, subject: str, detail: str = "", run_id: str = "") -> None:
        event = EventView(
            at=datetime.now(UTC), kind=kind, subject=subject, detail=detail, node=self.config.name, run_id=run_id
        )
        for callback in self._on_event:
            callback(event)

    # --- looking things up

    def pool(self, spec: SandboxSpec) -> Pool:
        digest = spec.digest
        if digest not in self.pools:
            self.pools[digest] = Pool.of(spec, self.config, self._rng)
            self.pools[digest].used_at = self.clock.now()
        return self.pools[digest]

    def of_lease(self, lease_id: str) -> Record | None:
        return self._by_lease.get(lease_id)

    def view(self, record: Record) -> SandboxView:
        return record.view(self.config.name, self._runtime)

    def counts(self) -> Counter[SandboxState]:
        return Counter(record.state for record in self.records.values())

    # --- the life of a sandbox

    def request(self, spec: SandboxSpec) -> Record:
        """A new sandbox, *starting*."""
        sandbox_id = f"sb-{secrets.token_hex(5)}"
        now = datetime.now(UTC)
        shared_dir = self.config.run_dir / sandbox_id
        record = Record(sandbox_id, spec, shared_dir, SandboxState.REQUESTED, now, now)
        self.records[sandbox_id] = record
        self.move(record, SandboxState.STARTING)
        self.pool(spec).starting += 1
        return record

    def move(self, record: Record, to: SandboxState) -> None:
        record.state = transition(record.state, to)
        record.changed_at = datetime.now(UTC)
        log.debug("sandbox=%s state=%s", record.id, to)
        view = self.view(record)
        for callback in self._on_change:
            callback(view)

    def became_ready(self, record: Record, start_s: float) -> None:
        pool = self.pool(record.spec)
        pool.starting -= 1
        pool.note_start(start_s)
        pool.last_error = None
        record.start_s = start_s
        record.ready_at = self.clock.now()
        self.move(record, SandboxState.READY)
        while pool.waiters:
            waiter = pool.waiters.popleft()
            if not waiter.future.done():
                self._lease(record, waiter.grant)
                waiter.future.set_result(record)
                return
        pool.ready.append(record)

    def take_ready(self, pool: Pool, grant: Grant) -> Record | None:
        """The ready sandbox that has waited longest, now *leased*; None if there is none or others wait already."""
        if pool.waiting or not pool.ready:
            return None
        record = pool.ready.popleft()
        self._lease(record, grant)
        return record

    def _lease(self, record: Record, grant: Grant) -> None:
        record.grant = grant
        self._by_lease[grant.lease_id] = record
        self.claims += 1
        self.move(record, SandboxState.LEASED)

    def adopt(self, record: Record, grant: Grant) -> None:
        """Take over a sandbox that an earlier process of this instance had leased out."""
        record.grant = grant
        self.records[record.id] = record
        self._by_lease[grant.lease_id] = record
        for callback in self._on_change:
            callback(self.view(record))

    def withdraw(self, record: Record) -> None:
        """Take it off the shelf: it may be dead, so nobody may get it."""
        pool = self.pool(record.spec)
        if record in pool.ready:
            pool.ready.remove(record)

    def restore(self, record: Record) -> None:
        """The suspicion was wrong."""
        if record.state is SandboxState.READY:
            self.pool(record.spec).ready.append(record)

    def release(self, record: Record) -> None:
        if record.state is SandboxState.STARTING:
            self.pool(record.spec).starting -= 1
        self.withdraw(record)
        self._end_grant(record)
        self.move(record, SandboxState.RELEASED)

    def fail(self, record: Record, evidence: Evidence, error: RockError | None = None) -> None:
        """Book its failure. One that failed before anyone had it makes its pool back off."""
        pool = self.pool(record.spec)
        was_ours = record.state in {SandboxState.STARTING, SandboxState.READY}
        if record.state is SandboxState.STARTING:
            pool.starting -= 1
        self.withdraw(record)
        self._end_grant(record)
        record.evidence = evidence
        self.failures += 1
        self.move(record, SandboxState.FAILED)
        run_id = record.grant.run_id if record.grant else ""
        self.emit("sandbox.failed", record.id, _sentence(evidence), run_id)
        if was_ours:
            pool.last_error = error or RockError(_sentence(evidence))
            wait_s = pool.backoff.failed(self.clock.now())
            log.info("pool=%s failures=%d retry_in_s=%.2f", pool.digest, pool.backoff.failures, wait_s)

    def _end_grant(self, record: Record) -> None:
        # By identity: a claim whose first sandbox died at the hand-over has a second one under the same lease by now.
        if record.grant is not None and self._by_lease.get(record.grant.lease_id) is record:
            del self._by_lease[record.grant.lease_id]

    def forget(self, record: Record) -> None:
        self.move(record, SandboxState.GONE)
        self.records.pop(record.id, None)

    # --- claims that wait

    def wait(self, pool: Pool, waiter: Waiter) -> None:
        pool.misses += 1
        pool.waiters.append(waiter)

    def give_up(self, pool: Pool, waiter: Waiter) -> None:
        if waiter in pool.waiters:
            pool.waiters.remove(waiter)

    def refuse_waiting(self, pool: Pool, error: RockError) -> None:
        """Waiting longer cannot help them: the image does not exist, the spec is wrong."""
        while pool.waiters:
            waiter = pool.waiters.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(type(error)(error.message, hint=error.hint, cause=error.cause))

    # --- planning

    def plan(self) -> Plan:
        now = self.clock.now()
        counts = self.counts()
        states = [self._pool_state(pool, now) for pool in self.pools.values()]
        return plan(
            states,
            slots=self.config.max_starting - counts[SandboxState.STARTING],
            room=self.config.capacity - sum(counts.values()),
        )

    def _pool_state(self, pool: Pool, now: float) -> PoolState:
        if pool.backoff.failures and any(now - r.ready_at > self.config.backoff.cap_s / 6 for r in pool.ready):
            pool.backoff.succeeded()  # one has lived a good while: whatever it was is over
        return PoolState(
            digest=pool.digest,
            target=wanted_ready(0 if self._idle(pool, now) else pool.target, pool.claims_per_s(now), pool.start_s),
            ready=len(pool.ready),
            starting=pool.starting,
            waiting=pool.waiting,
            backing_off=not pool.backoff.may_try(now),
            failing=pool.backoff.failures > 0,
        )

    def _idle(self, pool: Pool, now: float) -> bool:
        return now - pool.used_at >= self.config.idle_pool_s

    def drop_idle_pools(self) -> None:
        """Forget the pools that nobody wants any more and that hold nothing."""
        now = self.clock.now()
        in_use = {record.spec.digest for record in self.records.values()}
        for pool in list(self.pools.values()):
            if pool.idle and self._idle(pool, now) and pool.digest not in in_use:
                del self.pools[pool.digest]

    @property
    def living(self) -> int:
        return sum(1 for record in self.records.values() if record.state in LIVING)


def _sentence(evidence: Evidence) -> str:
    parts = [evidence.cause]
    if evidence.exit_code is not None:
        parts.append(f"exit code {evidence.exit_code}")
    if evidence.detail:
        parts.append(evidence.detail)
    return ": ".join(parts)

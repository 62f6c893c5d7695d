"""The node's book of its sandboxes and pools. Synchronous: every change is whole before anyone else runs.

Invariants: a sandbox is handed to at most one claim, and only from *ready*; claims that wait are served fairly between
runs and in the order they came within a run; none waits while its pool has one ready; a claim that gave up gets
nothing; a claim of a quarantined image does not wait; everyone who listens hears of every change of state.
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
from rock.domain.fairness import FairQueue
from rock.domain.pools import Plan, PoolState, Refills, plan
from rock.domain.sandbox import LIVING, SandboxState, transition
from rock.node.config import NodeConfig
from rock.node.quarantine import ImageQuarantine, sentence
from rock.node.record import Grant, Pool, Record, Waiter
from rock.wire.models import EventView, Evidence, SandboxSpec, SandboxView

log = logging.getLogger(__name__)

_OURS = frozenset({SandboxState.STARTING, SandboxState.READY})
_ALIVE = frozenset({SandboxState.READY, SandboxState.LEASED})


class Fleet:
    def __init__(self, config: NodeConfig, runtime: str, clock: Clock, rng: random.Random) -> None:
        self.config = config
        self.clock = clock
        self._runtime = runtime
        self._rng = rng
        self.records: dict[str, Record] = {}
        self.pools: dict[str, Pool] = {}
        self._by_lease: dict[str, Record] = {}
        self._queue: FairQueue[Waiter] = FairQueue()
        self._refills = Refills(config.refill_per_s, max(config.max_starting, int(config.refill_per_s)))
        self.quarantine = ImageQuarantine(config, clock, self.emit)
        self.memory_share = 0.0
        """Of the machine's memory in use, as last measured."""
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
        return self._pool(spec, spec.digest)

    def pool_of(self, record: Record) -> Pool:
        return self._pool(record.spec, record.digest)

    def _pool(self, spec: SandboxSpec, digest: str) -> Pool:
        pool = self.pools.get(digest)
        if pool is None:
            pool = self.pools[digest] = Pool.of(spec, digest, self.config, self._rng)
            pool.sizer.used_at = self.clock.now()
        return pool

    def waiting(self, pool: Pool) -> int:
        """Claims that wait for a sandbox of the pool."""
        return self._queue.waiting(pool.digest)

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
        record.requested_at = self.clock.now()
        self.records[sandbox_id] = record
        self.move(record, SandboxState.STARTING)
        self.pool_of(record).starting += 1
        return record

    def move(self, record: Record, to: SandboxState) -> None:
        record.state = transition(record.state, to)
        record.changed_at = datetime.now(UTC)
        log.debug("sandbox=%s state=%s", record.id, to)
        view = self.view(record)
        for callback in self._on_change:
            callback(view)

    def became_ready(self, record: Record, start_s: float | None) -> None:
        """``start_s``: None if an earlier process started it."""
        pool = self.pool_of(record)
        pool.starting -= 1
        if start_s is not None:
            pool.sizer.starts.note(start_s)
        pool.last_error = None
        record.start_s = start_s
        record.ready_at = self.clock.now()
        self.move(record, SandboxState.READY)
        self._offer(record, pool)

    def _offer(self, record: Record, pool: Pool) -> None:
        """To the claim whose turn it is, else on the shelf."""
        while (waiter := self._queue.pop(pool.digest)) is not None:
            if not waiter.future.done():
                self._lease(record, waiter.grant)
                waiter.future.set_result(record)
                return
        pool.ready.append(record)

    def take_ready(self, pool: Pool, grant: Grant) -> Record | None:
        """The ready sandbox that has waited longest, now *leased*; None if there is none."""
        if not pool.ready:
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

    def adopt_starting(self, record: Record) -> None:
        """The same of one that nobody had: it is *starting* until it has shown that it can be handed out."""
        record.requested_at = self.clock.now()
        self.records[record.id] = record
        self.pool_of(record).starting += 1
        for callback in self._on_change:
            callback(self.view(record))

    def withdraw(self, record: Record) -> None:
        """Take it off the shelf: it may be dead, so nobody may get it."""
        pool = self.pool_of(record)
        if record in pool.ready:
            pool.ready.remove(record)

    def restore(self, record: Record) -> None:
        """The suspicion was wrong."""
        if record.state is SandboxState.READY:
            self._offer(record, self.pool_of(record))

    def release(self, record: Record) -> None:
        if record.state is SandboxState.STARTING:
            self.pool_of(record).starting -= 1
        elif record.state is SandboxState.LEASED:
            self.quarantine.succeeded(record)
        self.withdraw(record)
        self._end_grant(record)
        self.move(record, SandboxState.RELEASED)

    def fail(self, record: Record, evidence: Evidence, error: RockError | None = None) -> None:
        """Book its failure. One that failed before anyone had it makes its pool back off."""
        pool = self.pool_of(record)
        state = record.state
        if state is SandboxState.STARTING:
            pool.starting -= 1
        self.withdraw(record)
        self._end_grant(record)
        record.evidence = evidence
        self.failures += 1
        self.move(record, SandboxState.FAILED)
        run_id = record.grant.run_id if record.grant else ""
        self.emit("sandbox.failed", record.id, sentence(evidence), run_id)
        if state in _OURS:
            pool.last_error = error or RockError(sentence(evidence), cause="\n".join(evidence.last_output[-5:]))
            wait_s = pool.backoff.failed(self.clock.now())
            log.info("pool=%s failures=%d retry_in_s=%.2f", pool.digest, pool.backoff.failures, wait_s)
        if self.quarantine.failed(record, state, evidence, error):
            self.refuse_waiting(pool, self.quarantine.error(pool))

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
        self._queue.push(pool.digest, waiter.grant.run_id, waiter)

    def give_up(self, pool: Pool, waiter: Waiter) -> None:
        self._queue.remove(pool.digest, waiter.grant.run_id, waiter)

    def refuse_waiting(self, pool: Pool, error: RockError) -> None:
        """Waiting longer cannot help them: the image does not exist, the spec is wrong."""
        for waiter in self._queue.drain(pool.digest):
            if not waiter.future.done():
                waiter.future.set_exception(type(error)(error.message, hint=error.hint, cause=error.cause))

    # --- planning

    def plan(self) -> Plan:
        now = self.clock.now()
        self._note_survivors(now)
        counts = self.counts()
        states = [self._pool_state(pool, now) for pool in self.pools.values()]
        refills = self._refills.available(now) if self.memory_share < self.config.full_at else 0
        made = plan(
            states,
            list(self._queue.order()),
            slots=self.config.max_starting - counts[SandboxState.STARTING] + self._awaiting_images(),
            room=self.config.capacity - sum(counts.values()),
            refills=refills,
        )
        self._refills.spend(made.refills)
        return made

    def _awaiting_images(self) -> int:
        starting = (record for record in self.records.values() if record.state is SandboxState.STARTING)
        return sum(record.awaits_image for record in starting)

    def _pool_state(self, pool: Pool, now: float) -> PoolState:
        target = pool.sizer.target(now, may_grow=self.memory_share < self.config.crowded_at)
        ready, waiting = len(pool.ready), self.waiting(pool)
        stale = sum(1 for record in pool.ready if self._stale(record, pool, now))
        surplus = pool.sizer.surplus(now, ready=ready - stale, starting=pool.starting, waiting=waiting)
        if stale and ready > target:
            surplus = max(surplus, min(stale, ready - target))
        return PoolState(
            digest=pool.digest,
            target=target + (1 if stale and target else 0),  # its replacement first, then the stale one goes
            ready=ready,
            starting=pool.starting,
            surplus=surplus,
            backing_off=not pool.backoff.may_try(now) or self.quarantine.refuses(pool.digest),
            failing=pool.backoff.failures > 0 or self.quarantine.on_trial(pool.digest),
        )

    def _stale(self, record: Record, pool: Pool, now: float) -> bool:
        return now - record.ready_at >= self.config.max_ready_age_s

    def _note_survivors(self, now: float) -> None:
        """What lives for a while shows that its image can, and that starting it makes sense again."""
        for record in self.records.values():
            if record.survived or record.state not in _ALIVE or now - record.ready_at < self.config.quick_death_s:
                continue
            self.pool_of(record).backoff.succeeded()
            self.quarantine.succeeded(record)

    def image_is(self, pool: Pool, version: str) -> list[Record]:
        """What the image's name stands for now. If that has changed: the ready ones of the old image, to be replaced;
        the new one is tried afresh."""
        before, pool.image_version = pool.image_version, version
        if before is None or before == version:
            return []
        pool.backoff.succeeded()
        self.quarantine.clear(pool.digest, "its image was built anew")
        return [record for record in pool.ready if record.image_version != version]

    def drop_idle_pools(self) -> None:
        """Forget the pools that nobody wants any more and that hold nothing."""
        now = self.clock.now()
        self.quarantine.forget()
        in_use = {record.digest for record in self.records.values()}
        for pool in list(self.pools.values()):
            wanted = pool.sizer.limits.minimum or self.waiting(pool)
            if (pool.sizer.idle(now) or pool.spec.from_snapshot) and not wanted and pool.digest not in in_use:
                del self.pools[pool.digest]

    @property
    def living(self) -> int:
        return sum(1 for record in self.records.values() if record.state in LIVING)

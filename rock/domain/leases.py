"""The lease book: who holds which sandbox, until when. Pure; the clock's time is passed to every call.

A lease *recovers* if it outlives its sandbox. When that is lost it is *unbound* until another sandbox takes its place,
under a higher epoch. Each attempt to find one gets an epoch of its own: an attempt that was given up may still succeed
somewhere out of sight, and what it claimed must never be taken for what a later one did.

Invariants: a sandbox is in at most one lease; of a lease's epochs at most one is bound, and they only rise; a lease
that ended never lives again; every lease ends exactly once, with one reason. The book forgets the oldest ended leases,
so that a run of millions of episodes does not fill the memory.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from math import inf

from rock.domain.errors import Conflict, LeaseExpired, NotFound, SandboxLost
from rock.domain.intensity import Intensity, IntensityPolicy

REMEMBER_ENDED = 10_000


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """How often a lease may lose its sandbox before the fault is taken for its own (the task kills every sandbox)."""

    intensity: IntensityPolicy = field(default_factory=IntensityPolicy)
    total: int = 20
    """Over the whole life of the lease, however slowly."""


@dataclass(frozen=True, slots=True)
class Held:
    """A living lease."""

    lease_id: str
    sandbox_id: str
    node: str
    epoch: int
    ttl_s: float
    expires_at: float
    """On the clock that the book is used with."""
    recovers: bool = False
    recoveries: int = 0
    """How often another sandbox took the place of a lost one."""
    moving: bool = False
    """It is unbound because somebody wants its sandbox gone, not because that failed."""
    bound: bool = True
    """False: ``sandbox_id`` is lost, and ``epoch`` is that of the latest attempt to replace it."""
    ends_at: float = inf
    """When it ends however often its holder beats: it asked for so much time and no more."""
    next_epoch: int = 0
    """The lowest for an attempt to find it another sandbox: those below may be out already."""

    def over(self, now: float) -> str:
        """Why its time has passed; empty if it has not."""
        if now >= self.ends_at:
            return "it was held for as long as was asked for (needs_s)"
        return f"no heartbeat within {self.ttl_s:g} s" if now >= self.expires_at else ""


@dataclass(frozen=True, slots=True)
class Ended:
    lease_id: str
    sandbox_id: str
    reason: str
    sandbox_failed: bool = False


class LeaseBook:
    def __init__(self, remember_ended: int = REMEMBER_ENDED, policy: RecoveryPolicy | None = None) -> None:
        self._policy = policy or RecoveryPolicy()
        self._losses: dict[str, Intensity] = {}
        self._held: dict[str, Held] = {}
        self._by_sandbox: dict[str, str] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._remember_ended = remember_ended

    def __len__(self) -> int:
        return len(self._held)

    def held(self) -> tuple[Held, ...]:
        return tuple(self._held.values())

    def get(self, lease_id: str) -> Held:
        """Raises LeaseExpired, SandboxLost (the sandbox failed under it) or NotFound, saying why it is no more."""
        if (held := self._held.get(lease_id)) is not None:
            return held
        if (ended := self._ended.get(lease_id)) is not None:
            if ended.sandbox_failed:
                raise SandboxLost(
                    f"sandbox {ended.sandbox_id} of lease {lease_id} failed: {ended.reason}", hint="Take a new lease."
                )
            raise LeaseExpired(f"lease {lease_id} has ended: {ended.reason}", hint="Take a new lease.")
        raise NotFound(f"no lease {lease_id!r}", hint="`GET /v1/leases` lists the living ones; take a new lease.")

    def of_sandbox(self, sandbox_id: str) -> Held | None:
        lease_id = self._by_sandbox.get(sandbox_id)
        return self._held[lease_id] if lease_id is not None else None

    def grant(
        self,
        lease_id: str,
        sandbox_id: str,
        *,
        node: str,
        epoch: int,
        ttl_s: float,
        now: float,
        recovers: bool = False,
        recoveries: int = 0,
        ends_at: float = inf,
        next_epoch: int = 0,
    ) -> Held:
        if lease_id in self._held or lease_id in self._ended:
            raise Conflict(f"lease {lease_id} exists already")
        if (other := self._by_sandbox.get(sandbox_id)) is not None:
            raise Conflict(f"sandbox {sandbox_id} is held by lease {other}")
        held = Held(
            lease_id,
            sandbox_id,
            node,
            epoch,
            ttl_s,
            now + ttl_s,
            recovers,
            recoveries,
            ends_at=ends_at,
            next_epoch=next_epoch,
        )
        self._held[lease_id] = held
        self._by_sandbox[sandbox_id] = lease_id
        return held

    def heartbeat(self, lease_id: str, now: float) -> Held:
        """Prolong by its time-to-live. A lease whose time has passed is over even if nobody has swept it yet."""
        held = self.get(lease_id)
        if why := held.over(now):
            raise LeaseExpired(f"lease {lease_id} has ended: {why}", hint="Take a new lease.")
        renewed = replace(held, expires_at=now + held.ttl_s)
        self._held[lease_id] = renewed
        return renewed

    def expired(self, now: float) -> tuple[Held, ...]:
        return tuple(held for held in self._held.values() if held.over(now))

    # --- losing a sandbox, and finding another

    def lose(self, lease_id: str, epoch: int, *, reason: str, now: float) -> Held | Ended | None:
        """Its sandbox of ``epoch`` is lost: now it is unbound, or, if it may not recover (any more), ended.

        None if that was known before, or the lease has ended: every loss is reported by several who see it.
        """
        held = self._held.get(lease_id)
        if held is None or not held.bound or held.epoch != epoch:
            return None
        too_often = self._too_often(held, now) if held.recovers else ""
        if not held.recovers or too_often:
            self.end(lease_id, reason=f"{too_often}: {reason}" if too_often else reason, sandbox_failed=True)
            return self._ended[lease_id]
        del self._by_sandbox[held.sandbox_id]
        self._held[lease_id] = unbound = replace(held, bound=False)
        return unbound

    def move(self, lease_id: str, epoch: int) -> Held | None:
        """Its sandbox of ``epoch`` is well and to be given up for another one: now it is unbound, and this is no loss.

        None as of :meth:`lose`, and if the lease does not recover: then it stays where it is.
        """
        held = self._held.get(lease_id)
        if held is None or not held.bound or held.epoch != epoch or not held.recovers:
            return None
        del self._by_sandbox[held.sandbox_id]
        self._held[lease_id] = unbound = replace(held, bound=False, moving=True)
        return unbound

    def _too_often(self, held: Held, now: float) -> str:
        """Why this was one loss too many; empty if it was not."""
        rule = self._policy.intensity
        if self._losses.setdefault(held.lease_id, Intensity(rule)).failed(now):
            return f"it lost more than {rule.max_failures} sandboxes within {rule.window_s:g} s"
        if held.recoveries >= self._policy.total:
            return f"it lost more than {self._policy.total} sandboxes"
        return ""

    def attempt(self, lease_id: str) -> int | None:
        """The epoch for the next try to find it another sandbox; None if the lease is no more, or is bound."""
        held = self._held.get(lease_id)
        if held is None or held.bound:
            return None
        epoch = max(held.epoch + 1, held.next_epoch)
        self._held[lease_id] = replace(held, epoch=epoch)
        return epoch

    def catch_up(self, lease_id: str, epoch: int) -> Held:
        """Its holder speaks for a later epoch than the book knows: a crash forgot what was not yet stored. What is
        bound under the old epoch is not the holder's any more. Raises as :meth:`get`."""
        held = self.get(lease_id)
        if epoch > held.epoch:
            held = self._held[lease_id] = replace(held, epoch=epoch)
        return held

    def rebind(self, lease_id: str, sandbox_id: str, *, node: str, epoch: int) -> Held | None:
        """The attempt of ``epoch`` found ``sandbox_id``. None if the lease has ended or gone on to another attempt:
        then nobody holds the sandbox."""
        held = self._held.get(lease_id)
        if held is None or held.bound or held.epoch != epoch:
            return None
        if (other := self._by_sandbox.get(sandbox_id)) is not None:
            raise Conflict(f"sandbox {sandbox_id} is held by lease {other}")
        recoveries = held.recoveries + (not held.moving)
        bound = replace(held, sandbox_id=sandbox_id, node=node, recoveries=recoveries, bound=True, moving=False)
        self._held[lease_id] = bound
        self._by_sandbox[sandbox_id] = lease_id
        return bound

    # --- the end

    def end(self, lease_id: str, *, reason: str, sandbox_failed: bool = False) -> Held | None:
        """End it; None if it had ended before (the first reason stays)."""
        held = self._held.pop(lease_id, None)
        if held is None:
            return None
        if held.bound:
            del self._by_sandbox[held.sandbox_id]
        self._losses.pop(lease_id, None)
        self._ended[lease_id] = Ended(lease_id, held.sandbox_id, reason, sandbox_failed)
        while len(self._ended) > self._remember_ended:
            self._ended.popitem(last=False)
        return held

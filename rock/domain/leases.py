"""The lease book: who holds which sandbox, until when. Pure; the clock's time is passed to every call.

Invariants: a sandbox is in at most one lease; a lease that ended never lives again; every lease ends exactly once, with
one reason. The book forgets the oldest ended leases, so that a run of millions of episodes does not fill the memory.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from rock.domain.errors import Conflict, LeaseExpired, NotFound, SandboxLost

REMEMBER_ENDED = 10_000


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


@dataclass(frozen=True, slots=True)
class Ended:
    lease_id: str
    sandbox_id: str
    reason: str
    sandbox_failed: bool = False


class LeaseBook:
    def __init__(self, remember_ended: int = REMEMBER_ENDED) -> None:
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

    def grant(self, lease_id: str, sandbox_id: str, *, node: str, epoch: int, ttl_s: float, now: float) -> Held:
        if lease_id in self._held or lease_id in self._ended:
            raise Conflict(f"lease {lease_id} exists already")
        if (other := self._by_sandbox.get(sandbox_id)) is not None:
            raise Conflict(f"sandbox {sandbox_id} is held by lease {other}")
        held = Held(lease_id, sandbox_id, node, epoch, ttl_s, now + ttl_s)
        self._held[lease_id] = held
        self._by_sandbox[sandbox_id] = lease_id
        return held

    def heartbeat(self, lease_id: str, now: float) -> Held:
        """Prolong by its time-to-live. A lease whose time has passed is over even if nobody has swept it yet."""
        held = self.get(lease_id)
        if now >= held.expires_at:
            self.end(lease_id, reason=f"no heartbeat within {held.ttl_s:g} s")
            return self.get(lease_id)  # raises LeaseExpired
        renewed = replace(held, expires_at=now + held.ttl_s)
        self._held[lease_id] = renewed
        return renewed

    def expired(self, now: float) -> tuple[Held, ...]:
        return tuple(held for held in self._held.values() if now >= held.expires_at)

    def end(self, lease_id: str, *, reason: str, sandbox_failed: bool = False) -> Held | None:
        """End it; None if it had ended before (the first reason stays)."""
        held = self._held.pop(lease_id, None)
        if held is None:
            return None
        del self._by_sandbox[held.sandbox_id]
        self._ended[lease_id] = Ended(lease_id, held.sandbox_id, reason, sandbox_failed)
        while len(self._ended) > self._remember_ended:
            self._ended.popitem(last=False)
        return held

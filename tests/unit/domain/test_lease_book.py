"""The lease book against a model: no sandbox in two leases, every lease ends once, nothing ended lives again."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rock.domain.errors import Conflict, LeaseExpired, NotFound, SandboxLost
from rock.domain.leases import LeaseBook

TTL_S = 10.0
leases = st.integers(0, 8).map(lambda n: f"ls-{n}")
sandboxes = st.integers(0, 5).map(lambda n: f"sb-{n}")


class LeaseBookMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook()
        self.now = 0.0
        self.living: dict[str, tuple[str, float]] = {}
        self.ended: set[str] = set()

    @rule(lease=leases, sandbox=sandboxes)
    def grant(self, lease: str, sandbox: str) -> None:
        taken = any(held == sandbox for held, _ in self.living.values())
        if taken or lease in self.living or lease in self.ended:
            with pytest.raises(Conflict):
                self.book.grant(lease, sandbox, node="n", epoch=1, ttl_s=TTL_S, now=self.now)
        else:
            self.book.grant(lease, sandbox, node="n", epoch=1, ttl_s=TTL_S, now=self.now)
            self.living[lease] = (sandbox, self.now + TTL_S)

    @rule(lease=leases)
    def heartbeat(self, lease: str) -> None:
        if lease in self.living and self.now < self.living[lease][1]:
            assert self.book.heartbeat(lease, self.now).expires_at == self.now + TTL_S
            self.living[lease] = (self.living[lease][0], self.now + TTL_S)
        elif lease in self.living or lease in self.ended:
            with pytest.raises((LeaseExpired, SandboxLost)):
                self.book.heartbeat(lease, self.now)
            self._ended(lease)
        else:
            with pytest.raises(NotFound):
                self.book.heartbeat(lease, self.now)

    @rule(lease=leases, failed=st.booleans())
    def end(self, lease: str, failed: bool) -> None:
        ended = self.book.end(lease, reason="because", sandbox_failed=failed)
        assert (ended is not None) == (lease in self.living)
        if ended is not None:
            self._ended(lease)
            with pytest.raises(SandboxLost if failed else LeaseExpired, match="because"):
                self.book.get(lease)

    @rule(seconds=st.floats(0, 2 * TTL_S))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        for held in self.book.expired(self.now):
            assert self.living[held.lease_id][1] <= self.now
            self.book.end(held.lease_id, reason="expired")
            self._ended(held.lease_id)
        assert all(expires_at > self.now for _, expires_at in self.living.values())

    def _ended(self, lease: str) -> None:
        self.living.pop(lease, None)
        self.ended.add(lease)

    @invariant()
    def the_book_holds_what_the_model_holds(self) -> None:
        held = self.book.held()
        assert {h.lease_id: h.sandbox_id for h in held} == {lease: s for lease, (s, _) in self.living.items()}
        assert len({h.sandbox_id for h in held}) == len(held) == len(self.book)
        for h in held:
            assert self.book.of_sandbox(h.sandbox_id) == h


LeaseBookMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeaseBook = LeaseBookMachine.TestCase


def test_the_book_forgets_the_oldest_of_the_ended_only() -> None:
    book = LeaseBook(remember_ended=2)
    for n in range(4):
        book.grant(f"ls-{n}", f"sb-{n}", node="n", epoch=1, ttl_s=1, now=0)
    for n in range(3):
        book.end(f"ls-{n}", reason="done")
    with pytest.raises(NotFound):
        book.get("ls-0")
    with pytest.raises(LeaseExpired):
        book.get("ls-1")
    assert book.get("ls-3").sandbox_id == "sb-3"

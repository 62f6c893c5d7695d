"""The lease book against a model: no sandbox in two leases, every lease ends once, nothing ended lives again; at most
one sandbox acts for an epoch, and epochs only rise, whoever reports losses and however late attempts succeed."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rock.domain.errors import Conflict, LeaseExpired, NotFound, SandboxLost
from rock.domain.intensity import IntensityPolicy
from rock.domain.leases import Ended, Held, LeaseBook, RecoveryPolicy

TTL_S = 10.0
leases = st.integers(0, 8).map(lambda n: f"ls-{n}")
sandboxes = st.integers(0, 5).map(lambda n: f"sb-{n}")


class LeaseBookMachine(RuleBasedStateMachine):
    """The model: who lives with which sandbox until when, which epochs were ever bound, and who has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook(policy=RecoveryPolicy(IntensityPolicy(2, 20.0), total=5))
        self.now = 0.0
        self.living: dict[str, tuple[str, float]] = {}
        self.unbound: set[str] = set()
        self.ended: set[str] = set()
        self.acted: dict[tuple[str, int], str] = {}
        """Which sandbox acts for an epoch of a lease."""
        self.last: dict[str, int] = {}
        self.attempts: dict[str, list[int]] = {}
        self.sandboxes = 100

    def bound(self) -> dict[str, str]:
        return {lease: sandbox for lease, (sandbox, _) in self.living.items() if lease not in self.unbound}

    @rule(lease=leases, sandbox=sandboxes, recovers=st.booleans())
    def grant(self, lease: str, sandbox: str, recovers: bool) -> None:
        taken = sandbox in self.bound().values()
        terms = {"node": "n", "epoch": 1, "ttl_s": TTL_S, "now": self.now, "recovers": recovers}
        if taken or lease in self.living or lease in self.ended:
            with pytest.raises(Conflict):
                self.book.grant(lease, sandbox, **terms)
        else:
            self.book.grant(lease, sandbox, **terms)
            self.living[lease] = (sandbox, self.now + TTL_S)
            self.acted[lease, 1] = sandbox
            self.last[lease] = 1

    @rule(lease=leases)
    def heartbeat(self, lease: str) -> None:
        if lease in self.living and self.now < self.living[lease][1]:
            assert self.book.heartbeat(lease, self.now).expires_at == self.now + TTL_S
            self.living[lease] = (self.living[lease][0], self.now + TTL_S)
        elif lease in self.living or lease in self.ended:
            with pytest.raises((LeaseExpired, SandboxLost)):
                self.book.heartbeat(lease, self.now)
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

    @rule(lease=leases, behind=st.integers(0, 2))
    def somebody_reports_a_loss(self, lease: str, behind: int) -> None:
        epoch = self.last.get(lease, 1) - behind
        outcome = self.book.lose(lease, epoch, reason="it died", now=self.now)
        if lease not in self.bound() or behind:
            assert outcome is None, "a loss that was known, or of an earlier epoch, must change nothing"
        elif isinstance(outcome, Held):
            assert outcome.recovers
            self.unbound.add(lease)
        else:
            assert isinstance(outcome, Ended)
            assert outcome.sandbox_failed
            self._ended(lease)

    @rule(lease=leases, behind=st.integers(0, 2))
    def somebody_wants_its_sandbox_gone(self, lease: str, behind: int) -> None:
        bound = lease in self.bound() and not behind
        recovers = bound and self.book.get(lease).recovers
        moving = self.book.move(lease, self.last.get(lease, 1) - behind)
        assert (moving is not None) == recovers
        if moving is not None:
            self.unbound.add(lease)

    @rule(lease=leases)
    def control_tries(self, lease: str) -> None:
        epoch = self.book.attempt(lease)
        assert (epoch is None) == (lease not in self.unbound)
        if epoch is not None:
            assert epoch > self.last[lease], "epochs only rise"
            self.last[lease] = epoch
            self.attempts.setdefault(lease, []).append(epoch)

    @rule(lease=leases, data=st.data())
    def an_attempt_succeeds_perhaps_late(self, lease: str, data: st.DataObject) -> None:
        if not self.attempts.get(lease):
            return
        epoch = data.draw(st.sampled_from(self.attempts[lease]))
        self.sandboxes += 1
        sandbox = f"sb-{self.sandboxes}"
        held = self.book.rebind(lease, sandbox, node="m", epoch=epoch)
        current = lease in self.unbound and epoch == self.last[lease]
        assert (held is not None) == current, "only the latest attempt binds, and only once"
        if held is not None:
            assert (lease, epoch) not in self.acted, "at most one sandbox acts for an epoch"
            self.acted[lease, epoch] = sandbox
            self.unbound.remove(lease)
            self.living[lease] = (sandbox, self.living[lease][1])

    @rule(lease=leases, ahead=st.integers(-1, 2))
    def a_holder_knows_better(self, lease: str, ahead: int) -> None:
        if lease in self.living and lease in self.unbound:
            self.last[lease] += max(0, ahead)
            assert self.book.catch_up(lease, self.last[lease] - (ahead < 0)).epoch == self.last[lease]

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
        assert lease not in self.ended, "each lease ends once"
        self.living.pop(lease)
        self.unbound.discard(lease)
        self.ended.add(lease)

    @invariant()
    def the_book_holds_what_the_model_holds(self) -> None:
        held = self.book.held()
        assert {h.lease_id: h.sandbox_id for h in held} == {lease: s for lease, (s, _) in self.living.items()}
        assert {h.lease_id for h in held if not h.bound} == self.unbound
        for h in held:
            assert h.epoch == self.last[h.lease_id]
            assert h.recoveries <= 5
            if h.bound:
                assert self.book.of_sandbox(h.sandbox_id) == h
                assert self.acted[h.lease_id, h.epoch] == h.sandbox_id


LeaseBookMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
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


def test_a_lease_that_loses_too_many_sandboxes_ends_with_the_reason() -> None:
    book = LeaseBook()
    book.grant("ls-1", "sb-0", node="n", epoch=1, ttl_s=600, now=0, recovers=True)
    for n in range(1, 4):
        assert isinstance(book.lose("ls-1", book.get("ls-1").epoch, reason="killed", now=n), Held)
        epoch = book.attempt("ls-1")
        assert epoch is not None
        book.rebind("ls-1", f"sb-{n}", node="n", epoch=epoch)
    assert isinstance(book.lose("ls-1", book.get("ls-1").epoch, reason="killed", now=5), Ended)
    with pytest.raises(SandboxLost, match="more than 3 sandboxes within 60 s: killed"):
        book.get("ls-1")


def test_being_moved_is_no_loss_however_often() -> None:
    book = LeaseBook(policy=RecoveryPolicy(total=2))
    book.grant("ls-1", "sb-0", node="n", epoch=1, ttl_s=600, now=0, recovers=True)
    for n in range(1, 30):
        assert book.move("ls-1", book.get("ls-1").epoch) is not None
        assert book.move("ls-1", book.get("ls-1").epoch) is None, "it is under way"
        book.rebind("ls-1", f"sb-{n}", node="n", epoch=book.attempt("ls-1") or 0)
    assert book.get("ls-1").recoveries == 0
    assert isinstance(book.lose("ls-1", book.get("ls-1").epoch, reason="killed", now=1), Held)
    book.rebind("ls-1", "sb-x", node="n", epoch=book.attempt("ls-1") or 0)
    assert book.get("ls-1").recoveries == 1, "a loss after a move counts again"


def test_a_lease_may_lose_many_over_a_long_time_but_not_endlessly_many() -> None:
    book = LeaseBook(policy=RecoveryPolicy(total=4))
    book.grant("ls-1", "sb-0", node="n", epoch=1, ttl_s=600, now=0, recovers=True)
    for n in range(1, 5):
        assert isinstance(book.lose("ls-1", book.get("ls-1").epoch, reason="killed", now=100 * n), Held)
        book.rebind("ls-1", f"sb-{n}", node="n", epoch=book.attempt("ls-1") or 0)
    assert isinstance(book.lose("ls-1", book.get("ls-1").epoch, reason="killed", now=1000), Ended)

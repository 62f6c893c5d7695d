"""Quarantine: what cannot live is refused, tried once after a long while, and cleared by a success or by somebody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rock.domain.intensity import IntensityPolicy
from rock.domain.quarantine import Book, QuarantinePolicy, Verdict

POLICY = QuarantinePolicy(IntensityPolicy(3, 60.0), max_in_row=8, retry_after_s=600.0, retry_cap_s=4000.0)


def fail(book: Book, now: float, subject: str = "a", began_s_ago: float = 0.5) -> Verdict:
    return book.failed(subject, began_at=now - began_s_ago, now=now, reason=f"at {now:g}")


def quarantined_at(now: float) -> Book:
    book = Book(POLICY)
    assert [fail(book, now - 3 + n) for n in range(4)] == [Verdict.NOTHING] * 3 + [Verdict.ADDED]
    return book


def test_the_fourth_failure_in_a_minute_puts_it_in_quarantine_with_the_last_evidence() -> None:
    entry = quarantined_at(100).refuses("a", 100)
    assert entry is not None
    assert (entry.failures, entry.reason, entry.since) == (4, "at 100", 100)
    assert quarantined_at(100).refuses("b", 100) is None


def test_starts_that_failed_side_by_side_are_one_piece_of_evidence() -> None:
    book = Book(POLICY)
    for _ in range(20):
        assert fail(book, 10.0, began_s_ago=2.0) is Verdict.NOTHING
    assert book.refuses("a", 10.0) is None


def test_slow_failures_are_caught_by_their_number() -> None:
    book = Book(POLICY)
    verdicts = [fail(book, 120.0 * n, began_s_ago=60) for n in range(1, 9)]
    assert verdicts == [Verdict.NOTHING] * 7 + [Verdict.ADDED]


def test_a_success_in_between_ends_the_row() -> None:
    book = Book(POLICY)
    for n in range(30):
        assert fail(book, 10.0 + n) is Verdict.NOTHING
        if n % 3 == 2:
            assert book.succeeded("a", 10.4 + n) is Verdict.NOTHING


def test_a_trial_that_fails_doubles_the_wait_and_one_that_lives_clears_it() -> None:
    book, now = quarantined_at(0), 0.0
    for wait_s in (600.0, 1200.0, 2400.0, 4000.0, 4000.0):
        assert book.refuses("a", now + wait_s - 0.01)
        now += wait_s
        assert book.refuses("a", now) is None
        assert book.on_trial("a", now)
        assert fail(book, now) is Verdict.ADDED
    now += 4000
    assert book.succeeded("a", now) is Verdict.CLEARED
    assert not list(book.quarantined())
    assert fail(book, now + 1) is Verdict.NOTHING, "it starts afresh"


def test_a_sandbox_from_before_does_not_clear_what_fails_now() -> None:
    book = quarantined_at(0)
    assert book.succeeded("a", 1) is Verdict.NOTHING
    assert book.refuses("a", 1)


def test_somebody_may_clear_it_and_then_it_starts_afresh() -> None:
    book = quarantined_at(0)
    assert book.clear("a")
    assert not book.clear("a")
    assert book.refuses("a", 0.5) is None
    assert fail(book, 1) is Verdict.NOTHING


def test_it_survives_a_restart_for_the_time_that_is_left() -> None:
    book = Book(POLICY)
    book.put("a", failures=4, reason="exited", age_s=500, now=1000)
    assert book.refuses("a", 1099)
    assert book.on_trial("a", 1100)


def test_what_nobody_speaks_of_any_more_is_forgotten() -> None:
    book = quarantined_at(0)
    fail(book, 0, subject="b")
    assert book.forget(POLICY.forget_after_s - 1) == []
    assert book.forget(POLICY.forget_after_s) == ["a"]
    assert len(book) == 0


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=60))
def test_one_that_succeeds_at_least_every_third_time_is_never_refused(steps: list[tuple[float, bool]]) -> None:
    book, now, row = Book(POLICY), 0.0, 0
    for gap, well in steps:
        now += gap
        if well or row == 3:
            book.succeeded("a", now)
            row = 0
        else:
            fail(book, now)
            row += 1
        assert book.refuses("a", now) is None


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens: only what failed is refused, only for a bounded time, and always with a reason."""

    def __init__(self) -> None:
        super().__init__()
        self.book, self.now = Book(POLICY), 0.0
        self.failures = {"a": 0, "b": 0}

    @rule(gap=st.floats(0, 5000))
    def time_passes(self, gap: float) -> None:
        self.now += gap

    @rule(subject=st.sampled_from("ab"), began_s_ago=st.floats(0, 100))
    def one_fails(self, subject: str, began_s_ago: float) -> None:
        was = self.book.refuses(subject, self.now) is not None
        self.failures[subject] += 1
        verdict = fail(self.book, self.now, subject, began_s_ago)
        is_now = self.book.refuses(subject, self.now) is not None
        assert (verdict is Verdict.ADDED) == (is_now and not was)

    @rule(subject=st.sampled_from("ab"))
    def one_lives(self, subject: str) -> None:
        was = self.book.refuses(subject, self.now)
        assert (self.book.succeeded(subject, self.now) is Verdict.CLEARED) <= (was is None)
        if was is None:
            self.failures[subject] = 0

    @rule(subject=st.sampled_from("ab"))
    def somebody_clears(self, subject: str) -> None:
        self.book.clear(subject)
        self.failures[subject] = 0
        assert self.book.refuses(subject, self.now) is None

    @invariant()
    def nothing_is_refused_without_enough_failures_or_for_ever(self) -> None:
        for subject, entry in self.book.quarantined():
            assert entry.reason
            assert self.failures[subject] > POLICY.intensity.max_failures
            assert entry.until is not None
            assert entry.until - self.now <= POLICY.retry_cap_s
            assert self.book.refuses(subject, entry.until) is None


TestAnyHistory = AnyHistory.TestCase

"""Fair queueing: no run starves another, whoever asks for more; first come, first served within a run."""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rock.domain.fairness import FairQueue

runs = st.sampled_from("abcd")


def queue(*items: tuple[str, str, int]) -> FairQueue[int]:
    made: FairQueue[int] = FairQueue()
    for lane, key, item in items:
        made.push(lane, key, item)
    return made


def drained(q: FairQueue[int], lane: str = "p") -> list[int]:
    out = []
    while (item := q.pop(lane)) is not None:
        out.append(item)
    return out


def test_one_claim_of_a_run_does_not_wait_behind_five_hundred_of_another() -> None:
    q = queue(*(("p", "greedy", n) for n in range(500)))
    assert [q.pop("p") for _ in range(3)] == [0, 1, 2]
    q.push("p", "modest", 1000)
    assert 1000 in [q.pop("p"), q.pop("p")]


def test_runs_take_turns_and_each_keeps_its_order() -> None:
    q = queue(*(("p", "a", n) for n in range(4)), *(("p", "b", 10 + n) for n in range(2)))
    assert drained(q) == [0, 10, 1, 11, 2, 3]


def test_who_was_away_has_no_credit() -> None:
    q = queue(*(("p", "a", n) for n in range(10)))
    for _ in range(8):
        q.pop("p")
    for n in range(10):
        q.push("p", "late", 100 + n)
    assert drained(q)[:4] == [100, 8, 101, 9]


def test_a_run_that_waits_for_many_images_has_no_more_of_a_full_node() -> None:
    many = [(f"p{n % 5}", "many", n) for n in range(50)]
    q = queue(*many, ("p9", "one", 100), ("p9", "one", 101))
    assert list(q.order())[:4].count("p9") == 2


def test_the_order_is_that_of_serving_and_changes_nothing() -> None:
    q = queue(("x", "a", 1), ("y", "a", 2), ("x", "b", 3), ("y", "b", 4), ("x", "b", 5))
    foretold = list(q.order())
    assert foretold == list(q.order()) == ["x", "x", "y", "y", "x"]
    assert [q.pop(lane) for lane in foretold] == [1, 3, 2, 4, 5]


def test_what_gave_up_is_not_served_and_a_drained_lane_comes_out_in_order() -> None:
    q = queue(("p", "a", 1), ("p", "b", 2), ("p", "a", 3), ("other", "a", 4))
    assert q.remove("p", "b", 2)
    assert not q.remove("p", "b", 2)
    assert q.drain("p") == [1, 3]
    assert (len(q), q.waiting("p"), q.waiting("other")) == (1, 0, 1)


@given(st.lists(st.tuples(runs, st.integers(1, 40)), min_size=2, max_size=6))
def test_while_two_runs_wait_neither_is_more_than_one_ahead(amounts: list[tuple[str, int]]) -> None:
    q, left = queue(), Counter[str]()
    owner = {}
    for run, amount in amounts:
        for _ in range(amount):
            owner[len(owner)] = run
            left[run] += 1
            q.push("p", run, len(owner) - 1)
    served = Counter[str]()
    while any(left.values()):
        waiting = [run for run, n in left.items() if n]
        assert max(served[r] for r in waiting) - min(served[r] for r in waiting) <= 1
        run = owner[q.pop("p") or 0]
        served[run] += 1
        left[run] -= 1
    assert q.pop("p") is None


class AnyArrivals(RuleBasedStateMachine):
    """Against a plain model: nothing is lost, doubled or overtaken within its run."""

    def __init__(self) -> None:
        super().__init__()
        self.q: FairQueue[int] = FairQueue()
        self.model: dict[tuple[str, str], deque[int]] = {}
        self.next = 0

    @rule(lane=st.sampled_from("xy"), run=runs)
    def arrives(self, lane: str, run: str) -> None:
        self.q.push(lane, run, self.next)
        self.model.setdefault((lane, run), deque()).append(self.next)
        self.next += 1

    @rule(lane=st.sampled_from("xy"), run=runs)
    def gives_up(self, lane: str, run: str) -> None:
        if line := self.model.get((lane, run)):
            assert self.q.remove(lane, run, line.pop())

    @rule(lane=st.sampled_from("xy"))
    def is_served(self, lane: str) -> None:
        item = self.q.pop(lane)
        lines = {run: line for (at, run), line in self.model.items() if at == lane and line}
        if item is None:
            assert not lines
            return
        run = next(r for r, line in lines.items() if line[0] == item)
        lines[run].popleft()

    @invariant()
    def it_agrees_with_the_model(self) -> None:
        assert len(self.q) == sum(map(len, self.model.values()))
        order = Counter(self.q.order())
        for lane in "xy":
            count = sum(len(line) for (at, _), line in self.model.items() if at == lane)
            assert self.q.waiting(lane) == order[lane] == count


TestAnyArrivals = AnyArrivals.TestCase

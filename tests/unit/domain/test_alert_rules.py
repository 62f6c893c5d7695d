"""Alerts: a spent error budget fires once, an earned one clears once, silence and collapse are seen."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.alerts import Action, AlertBook, Change, Rule

VOID = Rule("void", "rollout/void_rate", "above", 0.05, window=4, budget=0.25, action=Action.PAUSE)
PLAIN = Rule("stale", "staleness/max", "above", 2)
COLLAPSE = Rule("collapse", "reward", "drop", 0.5, window=3)
SILENT = Rule("stuck", "step", "silent", 600)


def feed(book: AlertBook, metric: str, samples: list[float]) -> list[Change]:
    return [change for n, sample in enumerate(samples) for change in book.observe({metric: sample}, float(n))]


def test_a_plain_threshold_fires_at_once_and_clears_at_once() -> None:
    changes = feed(AlertBook((PLAIN,), 0), "staleness/max", [1, 2, 3, 4, 2, 1])
    assert [(c.firing, c.at_s, c.value) for c in changes] == [(True, 2, 3), (False, 4, 2)]


def test_a_budget_forgives_what_it_covers_and_no_more() -> None:
    book = AlertBook((VOID,), 0)
    assert feed(book, VOID.metric, [0.9, 0, 0, 0, 0.9, 0]) == []
    (change,) = book.observe({VOID.metric: 0.9}, 6)
    assert change.firing
    assert change.reason == "rollout/void_rate is 0.9, above 0.05 in 2 of the last 4 samples; 25% may be"
    assert book.firing == (VOID,)


def test_it_clears_when_half_of_the_budget_is_earned_back() -> None:
    book = AlertBook((VOID,), 0)
    feed(book, VOID.metric, [0.9, 0.9, 0.9, 0.9])
    cleared = feed(book, VOID.metric, [0, 0, 0, 0])
    assert [(c.firing, c.at_s) for c in cleared] == [(False, 3)]  # one bad sample in four is the budget, not half of it


def test_nothing_fires_before_the_window_is_full() -> None:
    assert feed(AlertBook((VOID,), 0), VOID.metric, [1, 1, 1]) == []


def test_a_reward_that_collapses_fires_and_one_that_wavers_does_not() -> None:
    assert feed(AlertBook((COLLAPSE,), 0), "reward", [0.5, 0.6, 0.7, 0.4, 0.5, 0.6]) == []
    changes = feed(AlertBook((COLLAPSE,), 0), "reward", [0.6, 0.6, 0.6, 0.1, 0.1, 0.1, 0.6, 0.6, 0.6])
    assert [c.firing for c in changes] == [True, False]


def test_silence_fires_by_time_alone_and_ends_with_a_word() -> None:
    book = AlertBook((SILENT,), 100)
    assert book.tick(699) == []
    (fired,) = book.tick(701)
    assert fired.reason == "no step for 601 s, the limit is 600 s"
    assert book.tick(5000) == []
    (cleared,) = book.observe({"step": 1}, 5001)
    assert not cleared.firing
    assert book.tick(5600) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_bad(bad: float) -> None:
    for kind in ("above", "below"):
        book = AlertBook((Rule("r", "m", kind, 0.0),), 0)
        assert [c.firing for c in book.observe({"m": bad}, 0)] == [True]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"kind": "over"}, "'over'"), ({"window": 0}, "window"), ({"budget": 1.0}, "budget"), ({"name": ""}, "name")],
)
def test_a_rule_that_cannot_be_is_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Rule(**({"name": "a", "metric": "m", "kind": "above", "threshold": 1.0} | changes))  # type: ignore[arg-type]


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="void"):
        AlertBook((VOID, VOID), 0)


@given(
    st.sampled_from(["above", "below", "drop"]),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    st.lists(st.floats(-2, 2) | st.just(math.nan), max_size=60),
)
def test_firing_and_clearing_take_turns_and_begin_with_firing(
    kind: str, window: int, budget: float, samples: list[float]
) -> None:
    rule = Rule("r", "m", kind, 0.5, window=window, budget=budget)  # type: ignore[arg-type]
    book = AlertBook((rule,), 0)
    changes = feed(book, "m", samples)
    assert [c.firing for c in changes] == [n % 2 == 0 for n in range(len(changes))]
    assert bool(book.firing) == (len(changes) % 2 == 1)


@given(st.integers(1, 6), st.lists(st.booleans(), min_size=1, max_size=60))
def test_without_a_budget_it_fires_exactly_when_a_bad_sample_is_in_the_window(window: int, bad: list[bool]) -> None:
    book = AlertBook((Rule("r", "m", "above", 0.0, window=window),), 0)
    for n in range(len(bad)):
        book.observe({"m": float(bad[n])}, float(n))
        full = n + 1 >= window
        assert bool(book.firing) == (full and any(bad[max(0, n + 1 - window) : n + 1]))

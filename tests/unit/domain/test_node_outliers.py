"""Slow nodes are ejected: never more than a third, never on the word of one peer, never a whole slow fleet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.outliers import OutlierBook, OutlierPolicy, slowness

POLICY = OutlierPolicy()

fleets = st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0.0001, 10.0)), max_size=12)


def named(latencies: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {f"n{i}": pools for i, pools in enumerate(latencies)}


@given(st.lists(fleets, max_size=8), st.lists(st.floats(0.1, 200.0), min_size=8, max_size=8))
def test_never_more_than_a_third_is_out(looks: list[list[dict[str, float]]], gaps: list[float]) -> None:
    book, now = OutlierBook(), 0.0
    nodes = {f"n{i}" for i in range(12)}
    for look, gap_s in zip(looks, gaps, strict=False):
        now += gap_s
        book.judge(now, named(look), nodes)
        assert len(book.ejected(now)) <= len(nodes) // 3


@given(st.integers(3, 12), st.floats(0.001, 2.0), st.floats(0.5, 20.0))
def test_a_fleet_that_is_slow_as_a_whole_has_no_outlier(count: int, normal_s: float, factor: float) -> None:
    book = OutlierBook()
    for look in range(10):
        each = {f"n{i}": {"pool": normal_s * (factor if look > 4 else 1.0)} for i in range(count)}
        assert book.judge(float(look), each, each.keys()) == []


@given(st.integers(3, 12), st.floats(0.005, 1.0), st.floats(3.0, 50.0))
def test_the_one_slow_node_is_out_after_two_looks(count: int, normal_s: float, factor: float) -> None:
    book = OutlierBook()
    each = {f"n{i}": {"pool": normal_s} for i in range(count)} | {"n0": {"pool": normal_s * factor}}
    assert book.judge(0.0, each, each.keys()) == []
    (ejection,) = book.judge(1.0, each, each.keys())
    assert (ejection.node, ejection.times) == ("n0", 1)
    assert ejection.until == 1.0 + POLICY.base_s


def test_two_nodes_cannot_tell_which_of_them_is_slow() -> None:
    each = {"a": {"pool": 0.02}, "b": {"pool": 0.2}}
    assert slowness(each, POLICY) == {}
    assert OutlierBook().judge(0.0, each, each.keys()) == []


def test_nobody_is_slow_at_microseconds() -> None:
    each = {"a": {"p": 0.0001}, "b": {"p": 0.0001}, "c": {"p": 0.0009}}
    assert slowness(each, POLICY)["c"] <= 1.0


def test_pools_are_compared_with_their_like() -> None:
    each = {"a": {"slow env": 2.0, "q": 0.01}, "b": {"slow env": 2.0, "q": 0.01}, "c": {"slow env": 2.0}}
    assert all(ratio <= 1.0 for ratio in slowness(each, POLICY).values())


def test_each_ejection_is_twice_as_long_and_being_well_shortens_the_next() -> None:
    book, now = OutlierBook(), 0.0
    sound = {"a": {"p": 0.02}, "b": {"p": 0.02}, "c": {"p": 0.02}}
    lengths = []
    for slow_s in (0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16):
        each = sound | {"c": {"p": slow_s}}
        found = []
        while not found:
            now += 1.0
            found = book.judge(now, each, each.keys())
        lengths.append(found[0].until - now)
        now = found[0].until
    assert lengths == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    for _ in range(3000):
        now += 1.0
        assert book.judge(now, sound, sound.keys()) == []
    each = sound | {"c": {"p": 0.5}}
    now += 1.0
    assert book.judge(now, each, each.keys()) == []
    assert book.judge(now + 1.0, each, each.keys())[0].times < 7


def test_figures_from_before_the_ejection_do_not_count_again() -> None:
    book = OutlierBook()
    each = {"a": {"p": 0.02}, "b": {"p": 0.02}, "c": {"p": 0.1}}
    book.judge(0.0, each, each.keys())
    (ejection,) = book.judge(1.0, each, each.keys())
    back = ejection.until
    assert book.on_trial("c", back)
    for look in range(5):  # nobody has stepped there since
        assert book.judge(back + look, each, each.keys()) == []
    assert not book.on_trial("c", back + POLICY.trial_s)


def test_a_node_that_left_returns_with_a_clean_record() -> None:
    book = OutlierBook()
    each = {"a": {"p": 0.02}, "b": {"p": 0.02}, "c": {"p": 0.1}}
    book.judge(0.0, each, each.keys())
    book.judge(1.0, each, each.keys())
    book.forget("c")
    assert book.ejected(2.0) == set()

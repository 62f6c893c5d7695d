"""Who is slow: only against peers or a past, never all at once, never more than a share."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.slowness import Crowd, Latencies, Pace, SlowPolicy, Window, may_replace, slow

POLICY = SlowPolicy()
latency = st.floats(1e-6, 100.0, allow_nan=False)
counts = st.dictionaries(latency, st.integers(1, 20), max_size=6)
paces = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.builds(Pace, st.sampled_from(["x", "y"]), st.integers(0, 50), latency, st.floats(0, 50)),
    max_size=12,
)


def fleet(**p50_s: float) -> dict[str, Pace]:
    return {name: Pace("x", 20, value) for name, value in p50_s.items()}


def test_one_that_takes_ten_times_as_long_is_slow() -> None:
    found = slow(fleet(a=0.03, b=0.04, c=0.05, d=0.5), {}, POLICY)
    assert list(found) == ["d"]
    assert "500 ms, 12 times its image's 40 ms" in found["d"]


def test_alone_it_is_compared_with_its_images_past() -> None:
    assert slow(fleet(a=0.5), {}, POLICY) == {}
    assert list(slow(fleet(a=0.5), {"x": 0.04}, POLICY)) == ["a"]
    assert slow(fleet(a=0.5), {"x": 0.3}, POLICY) == {}


def test_microseconds_are_noise() -> None:
    assert slow(fleet(a=1e-5, b=1e-5, c=1e-5, d=1e-3), {}, POLICY) == {}


def test_on_a_quiet_machine_ten_times_a_few_milliseconds_is_slow_and_in_a_crowd_it_is_not() -> None:
    assert list(slow(fleet(a=0.003, b=0.004, c=0.003, d=0.04), {}, POLICY)) == ["d"]
    crowded = {id_: Pace(p.kind, p.steps, p.p50_s, 12.5) for id_, p in fleet(a=1e-3, b=1e-3, c=1e-3, d=0.065).items()}
    assert slow(crowded, {}, POLICY) == {}


@given(st.floats(1e-4, 1.0), st.floats(0, 50), st.floats(1, 9.99), st.booleans())
def test_who_only_waits_for_its_turn_is_not_slow(normal_s: float, crowd: float, noise: float, alone: bool) -> None:
    """A fair share of the processors, against peers who have theirs or against a past that was quiet; or, for a short
    step, a turn of everybody else before its own."""
    shared_s = normal_s * max(1.0, crowd) * noise
    peers = {} if alone else {name: Pace("x", 20, normal_s * max(1.0, crowd), crowd) for name in "bc"}
    assert slow(peers | {"a": Pace("x", 20, shared_s, crowd)}, {"x": normal_s}, POLICY) == {}
    waited_s = min(normal_s, POLICY.quiet_floor_s / 2) + 0.006 * crowd
    assert slow(peers | {"a": Pace("x", 20, waited_s, crowd)}, {"x": normal_s}, POLICY) == {}


@given(paces, st.dictionaries(st.sampled_from(["x", "y"]), latency), st.floats(0, 50))
def test_a_larger_crowd_never_makes_anybody_slow(found: dict[str, Pace], past: dict[str, float], more: float) -> None:
    crowded = {id_: Pace(p.kind, p.steps, p.p50_s, p.crowd + more) for id_, p in found.items()}
    assert set(slow(crowded, past, POLICY)) <= set(slow(found, past, POLICY))


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 50)), min_size=1, max_size=20), st.floats(0, 30))
def test_the_largest_crowd_of_late_counts(noted: list[tuple[float, float]], later_s: float) -> None:
    crowd, now, sizes = Crowd(10.0), 0.0, []
    for after_s, size in noted:
        now += after_s
        crowd.note(now, size)
        sizes.append((now, size))
    now += later_s
    assert crowd.peak(now) == max([size for at, size in sizes if now - at <= 10.0], default=sizes[-1][1])


def test_a_window_remembers_the_crowd_for_as_long_as_the_steps() -> None:
    window = Window(10)
    window.add({0.001: 5}, 8.0)
    window.add({0.001: 5}, 1.0)
    assert window.pace("x").crowd == 8.0
    window.add({0.001: 5}, 1.0)
    assert window.pace("x").crowd == 1.0


@given(paces)
def test_few_steps_accuse_nobody_and_are_no_measure(found: dict[str, Pace]) -> None:
    few = {id_: Pace(p.kind, min(p.steps, POLICY.min_steps - 1), p.p50_s) for id_, p in found.items()}
    assert slow(few, {"x": 1e-6, "y": 1e-6}, POLICY) == {}


@given(paces, st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_a_fleet_that_slows_as_a_whole_has_the_same_outliers(found: dict[str, Pace], factor: float) -> None:
    every = SlowPolicy(quiet_floor_s=0.0, crowded_floor_s=0.0)
    slower = {id_: Pace(p.kind, p.steps, p.p50_s * factor, p.crowd) for id_, p in found.items()}
    assert set(slow(slower, {}, every)) == set(slow(found, {}, every))


@given(paces)
def test_at_most_the_slower_half_of_a_kind_is_slow(found: dict[str, Pace]) -> None:
    called = Counter(found[id_].kind for id_ in slow(found, {}, POLICY))
    measured = Counter(p.kind for p in found.values() if p.steps >= POLICY.min_steps)
    for kind, number in called.items():
        assert number <= measured[kind] / 2


@given(st.integers(0, 1000), st.lists(st.floats(0, 100, allow_nan=False), max_size=30))
def test_never_more_than_a_share_is_replaced_within_the_window(living: int, replaced_at: list[float]) -> None:
    allowed = may_replace(living, replaced_at, 100.0, POLICY)
    recent = sum(1 for at in replaced_at if 100.0 - at < POLICY.window_s)
    assert allowed == 0 or allowed + recent <= max(1, living * POLICY.max_share)


@given(st.lists(counts, min_size=1, max_size=8))
def test_half_of_all_are_at_most_the_median(parts: list[dict[float, int]]) -> None:
    latencies = Latencies()
    for part in parts:
        latencies.add(part)
    everything = sorted(Counter(latencies.counts).elements())
    p50_s = latencies.p50_s()
    assert p50_s == (everything[(len(everything) - 1) // 2] if everything else None)


@given(st.lists(counts, max_size=20))
def test_a_window_keeps_the_latest_and_enough_of_them(parts: list[dict[float, int]]) -> None:
    window = Window(10)
    for part in parts:
        window.add(part)
    total = sum(sum(part.values()) for part in parts)
    kept = window.pace("x").steps
    assert kept >= min(10, total)
    latest = next((sum(part.values()) for part in reversed(parts) if part), 0)
    assert kept >= latest


def test_what_faded_weighs_half() -> None:
    latencies = Latencies()
    latencies.add({0.1: 10, 0.2: 1})
    latencies.fade()
    assert dict(latencies.counts) == {0.1: 5}

"""What a node starts next: within slots and room, waiting claims first and fairly, no idle sandbox lost for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.pools import MAX_GROWTH, Plan, PoolState, plan, wanted_ready

counts = st.integers(0, 12)


@st.composite
def pool_lists(draw: st.DrawFn) -> list[PoolState]:
    return [
        PoolState(
            f"p{index}",
            target=draw(counts),
            ready=draw(counts),
            starting=draw(st.integers(0, 4)),
            waiting=draw(counts),
            backing_off=draw(st.booleans()),
            failing=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 5)))
    ]


def pool(digest: str = "a", **changes: int | bool) -> PoolState:
    base = {"target": 0, "ready": 0, "starting": 0, "waiting": 0}
    return PoolState(digest, **{**base, **changes})  # type: ignore[arg-type]


@given(pool_lists(), st.integers(-2, 8), st.integers(-2, 20))
def test_a_plan_keeps_to_slots_room_and_need(pools: list[PoolState], slots: int, room: int) -> None:
    made = plan(pools, slots=slots, room=room)
    drained = sum(max(0, p.ready - p.waiting) for p in pools if p.target == 0)
    assert sum(made.starts.values()) <= max(0, slots)
    # Evictions of drained pools give room to the next plan; those for a waiting claim give it to this one.
    for_claims = sum(made.evictions.values()) - drained
    assert for_claims >= 0
    assert sum(made.starts.values()) <= max(0, room) + for_claims
    for p in pools:
        starts, evictions = made.starts.get(p.digest, 0), made.evictions.get(p.digest, 0)
        assert starts <= max(0, p.waiting + p.target - p.ready - p.starting)
        assert evictions <= max(0, p.ready - p.waiting), "a sandbox that a claim waits for is not idle"
        if p.backing_off:
            assert starts == 0
        if p.failing:
            assert starts == 0 or p.starting + starts == 1


@given(pool_lists(), st.integers(0, 8), st.integers(0, 20))
def test_no_pool_warms_up_while_a_claim_that_could_be_served_waits(
    pools: list[PoolState], slots: int, room: int
) -> None:
    made = plan(pools, slots=slots, room=room)
    unserved = [
        p
        for p in pools
        if not p.backing_off and not p.failing and p.waiting > p.ready + p.starting + made.starts.get(p.digest, 0)
    ]
    warmed = [p for p in pools if made.starts.get(p.digest, 0) > max(0, p.waiting - p.ready - p.starting)]
    assert not (unserved and warmed)


def test_waiting_claims_of_two_images_share_the_slots() -> None:
    made = plan([pool("a", waiting=100), pool("b", waiting=2)], slots=4, room=50)
    assert made.starts == {"a": 2, "b": 2}


def test_a_full_node_gives_an_idle_sandbox_up_for_a_claim_that_waits() -> None:
    made = plan([pool("idle", target=5, ready=5), pool("wanted", waiting=1)], slots=4, room=0)
    assert made == Plan(starts={"wanted": 1}, evictions={"idle": 1})


def test_a_full_node_does_not_trade_one_idle_sandbox_for_another() -> None:
    assert plan([pool("a", target=5, ready=5), pool("b", target=3)], slots=4, room=0) == Plan()


def test_a_drained_pool_is_emptied() -> None:
    assert plan([pool("a", target=0, ready=3)], slots=4, room=9).evictions == {"a": 3}


@given(st.integers(-3, 50), st.floats(0, 1000), st.floats(0, 100))
def test_the_wanted_size_stays_between_the_target_and_its_growth(target: int, rate: float, start_s: float) -> None:
    wanted = wanted_ready(target, rate, start_s)
    assert max(0, target) <= wanted <= MAX_GROWTH * max(0, target)

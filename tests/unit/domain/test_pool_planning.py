"""What a node starts next: within slots, room and refills, waiting claims first and in order, nothing idle lost."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.pools import Plan, PoolState, Refills, plan

counts = st.integers(0, 12)


@st.composite
def nodes(draw: st.DrawFn) -> tuple[list[PoolState], list[str]]:
    """Pools, and the line of claims that wait for them."""
    pools = [
        PoolState(
            f"p{index}",
            target=draw(counts),
            ready=draw(counts),
            starting=draw(st.integers(0, 4)),
            surplus=draw(counts),
            backing_off=draw(st.booleans()),
            failing=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 5)))
    ]
    return pools, draw(st.lists(st.sampled_from([p.digest for p in pools]), max_size=30)) if pools else []


def pool(digest: str = "a", **changes: int | bool) -> PoolState:
    base = {"target": 0, "ready": 0, "starting": 0}
    return PoolState(digest, **{**base, **changes})  # type: ignore[arg-type]


@given(nodes(), st.integers(-2, 8), st.integers(-2, 20), st.integers(-2, 8))
def test_a_plan_keeps_to_slots_room_refills_and_need(
    node: tuple[list[PoolState], list[str]], slots: int, room: int, refills: int
) -> None:
    pools, queue = node
    waiting = Counter(queue)
    made = plan(pools, queue, slots=slots, room=room, refills=refills)
    assert sum(made.starts.values()) <= max(0, slots)
    assert made.refills <= max(0, refills)
    # Evictions of what is too much give room to the next plan; those for a waiting claim give it to this one.
    for_claims = sum(made.evictions.values()) - sum(max(0, min(p.surplus, p.ready - waiting[p.digest])) for p in pools)
    assert for_claims >= 0
    assert sum(made.starts.values()) <= max(0, room) + for_claims
    for p in pools:
        starts, evictions = made.starts.get(p.digest, 0), made.evictions.get(p.digest, 0)
        assert starts <= max(0, waiting[p.digest] + p.target - p.ready - p.starting)
        assert evictions <= max(0, p.ready - waiting[p.digest]), "a sandbox that a claim waits for is not idle"
        if p.backing_off:
            assert starts == 0
        if p.failing:
            assert starts == 0 or p.starting + starts == 1


@given(nodes(), st.integers(0, 8), st.integers(0, 20))
def test_no_pool_warms_up_while_a_claim_that_could_be_served_waits(
    node: tuple[list[PoolState], list[str]], slots: int, room: int
) -> None:
    pools, queue = node
    waiting = Counter(queue)
    made = plan(pools, queue, slots=slots, room=room, refills=99)
    unserved = [
        p
        for p in pools
        if not p.backing_off
        and not p.failing
        and waiting[p.digest] > p.ready + p.starting + made.starts.get(p.digest, 0)
    ]
    assert not (unserved and made.refills)


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(0, 8))
def test_claims_are_given_starts_in_the_order_of_the_queue(queue: list[str], slots: int) -> None:
    made = plan([pool(d) for d in "abc"], queue, slots=slots, room=99, refills=0)
    assert made.starts == dict(Counter(queue[:slots]))


def test_a_pool_that_cannot_be_served_does_not_hold_up_those_behind_it() -> None:
    made = plan([pool("bad", backing_off=True), pool("good")], ["bad"] * 9 + ["good"], slots=4, room=50, refills=0)
    assert made.starts == {"good": 1}


def test_what_is_on_its_way_serves_those_who_wait_first() -> None:
    made = plan([pool("a", starting=2), pool("b")], ["a", "a", "b"], slots=4, room=50, refills=0)
    assert made.starts == {"b": 1}


def test_a_full_node_gives_an_idle_sandbox_up_for_a_claim_that_waits() -> None:
    made = plan([pool("idle", target=5, ready=5), pool("wanted")], ["wanted"], slots=4, room=0, refills=4)
    assert made == Plan(starts={"wanted": 1}, evictions={"idle": 1})


def test_a_full_node_does_not_trade_one_idle_sandbox_for_another() -> None:
    assert plan([pool("a", target=5, ready=5), pool("b", target=3)], [], slots=4, room=0, refills=4) == Plan()


def test_what_a_pool_can_spare_goes_and_what_it_keeps_stays() -> None:
    assert plan([pool("a", ready=3, surplus=3)], [], slots=4, room=9, refills=4).evictions == {"a": 3}
    assert plan([pool("a", target=1, ready=3)], [], slots=4, room=9, refills=4).evictions == {}


def test_pools_share_the_refills() -> None:
    made = plan([pool("a", target=9), pool("b", target=9)], [], slots=8, room=50, refills=4)
    assert (made.starts, made.refills) == ({"a": 2, "b": 2}, 4)


@given(st.floats(0.1, 20), st.integers(1, 16), st.lists(st.tuples(st.floats(0, 5), st.integers(0, 20)), min_size=1))
def test_refills_keep_to_their_rate_over_any_stretch(per_s: float, burst: int, wishes: list[tuple[float, int]]) -> None:
    bucket, now, spent = Refills(per_s, burst), 0.0, 0
    for gap, wish in wishes:
        now += gap
        taken = min(wish, bucket.available(now))
        bucket.spend(taken)
        spent += taken
        assert spent <= burst + per_s * now + 1e-6

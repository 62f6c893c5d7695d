"""Two random choices: never an unhealthy node, the sound before the ejected, warm before cold, room before none."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.placement import NodeLoad, choose


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeLoad]:
    return [
        NodeLoad(
            f"n{index}",
            healthy=draw(st.booleans()),
            busy=draw(st.integers(0, 10)),
            capacity=draw(st.integers(1, 10)),
            ready=draw(st.integers(0, 2)),
            pressure=draw(st.floats(0, 1)),
            slowness=draw(st.floats(0, 10)),
            last_resort=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 6)))
    ]


@given(fleets(), st.integers())
def test_the_choice_is_healthy_and_of_the_best_kind_there_is(nodes: list[NodeLoad], seed: int) -> None:
    chosen = choose(nodes, random.Random(seed))
    healthy = [n for n in nodes if n.healthy]
    assert (chosen is None) == (not healthy)
    if chosen is not None:
        assert chosen.healthy
        assert not chosen.last_resort or all(n.last_resort for n in healthy)
        alike = [n for n in healthy if n.last_resort == chosen.last_resort]
        assert chosen.ready > 0 or not any(n.ready for n in alike)
        assert chosen.ready > 0 or chosen.busy < chosen.capacity or all(n.busy >= n.capacity for n in alike)


def test_the_load_spreads_over_equal_nodes() -> None:
    rng, living = random.Random(7), dict.fromkeys(("a", "b", "c", "d"), 0)
    for _ in range(400):
        nodes = [NodeLoad(name, True, count, 1000) for name, count in living.items()]
        chosen = choose(nodes, rng)
        assert chosen is not None
        living[chosen.name] += 1
    assert max(living.values()) - min(living.values()) <= 4


def test_a_slow_node_gets_less() -> None:
    rng, busy = random.Random(7), dict.fromkeys(("a", "b", "c", "slow"), 0)
    for _ in range(400):
        nodes = [NodeLoad(n, True, count, 1000, slowness=5.0 if n == "slow" else 1.0) for n, count in busy.items()]
        chosen = choose(nodes, rng)
        assert chosen is not None
        busy[chosen.name] += 1
    assert busy["slow"] < min(busy[n] for n in ("a", "b", "c")) / 2

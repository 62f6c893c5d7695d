"""Two random choices: never an unhealthy node, warm before cold, room before none, and the load spreads."""

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
            living=draw(st.integers(0, 10)),
            capacity=draw(st.integers(1, 10)),
            ready=draw(st.integers(0, 2)),
            pressure=draw(st.floats(0, 1)),
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
        assert chosen.ready > 0 or not any(n.ready for n in healthy)
        assert chosen.ready > 0 or chosen.living < chosen.capacity or all(n.living >= n.capacity for n in healthy)


def test_the_load_spreads_over_equal_nodes() -> None:
    rng, living = random.Random(7), dict.fromkeys(("a", "b", "c", "d"), 0)
    for _ in range(400):
        nodes = [NodeLoad(name, True, count, 1000) for name, count in living.items()]
        chosen = choose(nodes, rng)
        assert chosen is not None
        living[chosen.name] += 1
    assert max(living.values()) - min(living.values()) <= 4

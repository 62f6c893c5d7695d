"""What a fair queue on every node is worth over all of them: wherever a run waits, nobody else takes everything."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.fairness import FairQueue

MANY = 80
nodes = st.integers(0, 4)
freed = st.lists(nodes, max_size=60)


class Fleet:
    """Five full nodes; a claim waits on the node it was placed on."""

    def __init__(self, *greedy: str) -> None:
        self.queues: list[FairQueue[str]] = [FairQueue() for _ in range(5)]
        self.served: list[Counter[str]] = [Counter() for _ in self.queues]
        for node in range(5):
            for run in greedy:
                self.place(run, node, MANY)

    def place(self, run: str, node: int, claims: int = 1) -> None:
        for _ in range(claims):
            self.queues[node].push("image", run, run)

    def free(self, node: int) -> str:
        run = self.queues[node].pop("image")
        assert run is not None
        self.served[node][run] += 1
        return run


@given(freed, st.dictionaries(nodes, st.integers(1, 5)), freed)
def test_on_each_node_it_waits_on_a_run_is_served_after_one_of_every_other(
    before: list[int], claims: dict[int, int], after: list[int]
) -> None:
    fleet = Fleet("greedy", "other")
    for node in before:
        fleet.free(node)
    for node, count in claims.items():
        fleet.place("modest", node, count)
    then = [Counter(served) for served in fleet.served]
    for node in after:
        fleet.free(node)
        since = fleet.served[node] - then[node]
        if since["modest"] < claims.get(node, 0):
            assert max(since["greedy"], since["other"]) <= since["modest"] + 1
            assert since.total() <= 3 * (since["modest"] + 1) - 1


@given(freed)
def test_runs_that_wait_everywhere_are_never_further_apart_than_there_are_nodes(after: list[int]) -> None:
    fleet = Fleet("a", "b")
    for node in after:
        fleet.free(node)
        in_all = sum(fleet.served, Counter[str]())
        assert abs(in_all["a"] - in_all["b"]) <= 5


@given(freed, nodes)
def test_where_nodes_become_free_in_turn_one_claim_waits_for_one_sandbox_of_each_run_and_node(
    before: list[int], where: int
) -> None:
    fleet = Fleet("greedy", "other")
    for node in before:
        fleet.free(node)
    fleet.place("modest", where)
    taken = [fleet.free(n % 5) for n in range(3 * 5)]
    assert "modest" in taken

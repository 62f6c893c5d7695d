"""The book of nodes on a clock that is turned by hand: who is dead, who gets leases, who is told what."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from rock.control.nodes import NodeBook
from rock.domain.clock import ManualClock
from rock.domain.errors import CapacityExceeded, NotFound, PlatformUnavailable
from rock.domain.nodes import NodeStanding
from rock.domain.sandbox import SandboxState
from rock.store.nodes import NodeStore, Word
from rock.wire.models import Endpoint, EventView, NodeView, SandboxSpec, SandboxView

_S = NodeStanding
SPEC = SandboxSpec(image="toy", env="toy", entry="toy:Env")


class FarNode:
    """What the book needs of a node, and faults."""

    default_image = "toy"

    def __init__(self, name: str) -> None:
        self.name = name
        self.silent = False
        self.generation = 1
        self.leased = 0
        self.step_p50_s: dict[str, float] = {}
        self.pools: dict[str, int] = {}

    async def view(self) -> NodeView:
        if self.silent:
            raise PlatformUnavailable(f"node {self.name} cannot be reached")
        return NodeView(
            name=self.name,
            runtime="fake",
            healthy=True,
            capacity=100,
            sandboxes={SandboxState.LEASED: self.leased},
            step_p50_s=self.step_p50_s,
            generation=self.generation,
        )

    async def set_pool(self, spec: SandboxSpec, target: int, *, minimum: int = 0, maximum: int = 0) -> None:
        self.pools[spec.digest] = target

    def on_change(self, callback: object) -> None:
        pass

    def on_event(self, callback: object) -> None:
        pass

    def endpoint(self, sandbox_id: str) -> Endpoint:
        return Endpoint(node=self.name)


class Keeper:
    def __init__(self) -> None:
        self.lost: list[str] = []
        self.readopted: list[str] = []
        self.left: dict[str, int] = {}
        self.fails = False

    def node_lost(self, name: str, why: str) -> None:
        self.lost.append(name)

    async def readopt(self, node: FarNode) -> None:
        if self.fails:
            raise PlatformUnavailable("gone again")
        self.readopted.append(node.name)

    def drain(self, name: str, why: str) -> int:
        return self.left.get(name, 0)


class Words(NodeStore):
    def __init__(self) -> None:
        self.kept: dict[str, Word] = {}

    async def words(self) -> dict[str, Word]:
        return dict(self.kept)

    async def save(self, name: str, word: Word) -> None:
        self.kept[name] = word

    async def remove(self, name: str) -> None:
        self.kept.pop(name, None)


class Stage:
    """A book whose loops are not running: time passes in :meth:`pass_s`, one look a second."""

    def __init__(self, names: Sequence[str], words: Words | None = None) -> None:
        self.clock = ManualClock()
        self.nodes = {name: FarNode(name) for name in names}
        self.book = NodeBook(list(self.nodes.values()), random.Random(3), clock=self.clock)
        self.keeper = Keeper()
        self.words = words or Words()
        self.events: list[EventView] = []

    async def __aenter__(self) -> Stage:
        self.book.listen(lambda view: None, self.events.append)
        await self.book.begin(self.keeper, self.words)
        await self.book.close()  # its loops; the clock here is turned by hand
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.book.close()

    async def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.clock.advance(1.0)
            await self.book.beat()
            for _ in range(3):  # what was begun in the background: rejoining
                await asyncio.sleep(0)

    async def standings(self) -> dict[str, NodeStanding]:
        return {view.name: view.standing for view in await self.book.views()}

    def kinds(self, name: str) -> list[str]:
        return [event.kind for event in self.events if event.subject == name]


def test_a_silent_node_is_suspect_then_dead_and_loses_its_leases_once() -> None:
    async def main() -> None:
        async with Stage("ab") as s:
            s.nodes["a"].silent = True
            await s.pass_s(1)
            assert (await s.standings())["a"] is _S.SUSPECT
            assert {(await s.book.choose(SPEC)).name for _ in range(20)} == {"b"}
            assert s.keeper.lost == []
            await s.pass_s(3)
            assert (await s.standings())["a"] is _S.DEAD
            await s.pass_s(10)
            assert s.keeper.lost == ["a"]
            assert [node.name for node in s.book] == ["b"]
            assert s.kinds("a") == ["node.suspect", "node.dead"]

    asyncio.run(main())


def test_a_node_that_returns_is_told_its_leases_before_it_is_up() -> None:
    async def main() -> None:
        async with Stage("ab") as s:
            s.nodes["a"].silent = True
            await s.pass_s(5)
            s.nodes["a"].silent, s.nodes["a"].generation, s.keeper.fails = False, 2, True
            await s.pass_s(2)
            assert (await s.standings())["a"] is _S.DEAD  # it answers, and was not told yet
            s.keeper.fails = False
            await s.pass_s(1)
            assert s.keeper.readopted == ["a"]
            await s.pass_s(1)
            assert (await s.standings())["a"] is _S.UP
            assert s.kinds("a") == ["node.suspect", "node.dead", "node.up"]

    asyncio.run(main())


def test_a_node_that_was_started_again_within_a_second_is_told_its_leases_too() -> None:
    async def main() -> None:
        async with Stage("ab") as s:
            s.nodes["b"].generation = 2
            await s.pass_s(1)
            assert s.keeper.readopted == ["b"]
            assert s.keeper.lost == []
            await s.pass_s(1)
            assert (await s.standings())["b"] is _S.UP

    asyncio.run(main())


def test_nobody_is_dead_for_time_in_which_control_did_not_run() -> None:
    async def main() -> None:
        async with Stage("ab") as s:
            s.nodes["a"].silent = True
            for _ in range(4):
                s.book._lag.note(10.0)
                s.clock.advance(9.0)
                await s.pass_s(1)
            assert (await s.standings())["a"] is _S.SUSPECT

    asyncio.run(main())


def test_what_was_placed_since_the_last_look_counts() -> None:
    async def main() -> None:
        async with Stage("abcd") as s:
            placed = [(await s.book.choose(SPEC)).name for _ in range(80)]
            counts = {name: placed.count(name) for name in s.nodes}
            assert max(counts.values()) - min(counts.values()) <= 4, counts
            for name, count in counts.items():
                s.nodes[name].leased = count
            await s.pass_s(1)
            busy = {m.handle.name: m.load(SPEC.digest, last_resort=False).busy for m in s.book._members.values()}
            assert busy == counts  # seen by now, and not counted twice

    asyncio.run(main())


def test_a_cordoned_node_gets_nothing_and_the_word_outlives_a_restart() -> None:
    async def main() -> None:
        async with Stage("ab") as s:
            view = await s.book.cordon("a", "new disks")
            assert (view.standing, view.standing_detail) == (_S.CORDONED, "new disks")
            assert {(await s.book.choose(SPEC)).name for _ in range(20)} == {"b"}
            await s.book.cordon("b")
            with pytest.raises(PlatformUnavailable, match="a is cordoned: new disks; b is cordoned"):
                await s.book.choose(SPEC)
            with pytest.raises(NotFound, match="there are: a, b"):
                await s.book.cordon("c")
            async with Stage("ab", s.words) as again:
                assert await again.standings() == {"a": _S.CORDONED, "b": _S.CORDONED}
                await again.book.uncordon("a")
                assert (await again.book.choose(SPEC)).name == "a"

    asyncio.run(main())


def test_a_drained_node_gives_up_its_pools_and_says_when_it_is_empty() -> None:
    async def main() -> None:
        async with Stage("ab") as s:
            await s.book.set_pool(SPEC, 5)
            s.keeper.left["a"] = 2
            await s.book.drain("a", "goes away")
            assert [node.pools[SPEC.digest] for node in s.nodes.values()] == [0, 5]
            await s.pass_s(2)
            assert "node.drained" not in s.kinds("a")
            s.keeper.left["a"] = 0
            await s.pass_s(2)
            assert s.kinds("a") == ["node.draining", "node.drained"]
            assert (await s.book.views())[0].standing_detail == "empty; goes away"
            await s.book.uncordon("a")
            assert s.nodes["a"].pools[SPEC.digest] == 5

    asyncio.run(main())


def test_a_node_that_joins_gets_pools_and_leases_and_one_that_leaves_loses_them() -> None:
    async def main() -> None:
        async with Stage("a") as s:
            await s.book.set_pool(SPEC, 2)
            s.nodes["late"] = FarNode("late")
            await s.book.join(s.nodes["late"])
            await s.pass_s(2)
            assert (await s.standings())["late"] is _S.UP
            assert s.keeper.readopted == ["late"]
            assert s.nodes["late"].pools == {SPEC.digest: 2}
            assert {(await s.book.choose(SPEC)).name for _ in range(20)} == {"a", "late"}
            await s.book.leave("late", "its machine is gone")
            assert s.keeper.lost == ["late"]
            assert "late" not in s.book
            await s.book.leave("late", "again")

    asyncio.run(main())


def test_a_claim_waits_a_moment_for_the_only_node_to_be_itself_again() -> None:
    async def main() -> None:
        async with Stage("ab") as s:
            s.nodes["a"].silent = s.nodes["b"].silent = True
            await s.pass_s(1)
            waiting = asyncio.ensure_future(s.book.choose(SPEC))
            await asyncio.sleep(0)
            assert not waiting.done()
            s.nodes["b"].silent = False
            await s.pass_s(1)
            assert (await waiting).name == "b"

    asyncio.run(main())


async def given(name: str) -> SandboxView:
    """What a claim on the node gives."""
    now = datetime.now(UTC)
    return SandboxView(
        id="sb-1", node=name, runtime="fake", state=SandboxState.LEASED, spec=SPEC, created_at=now, changed_at=now
    )


def test_a_claim_on_a_node_that_dies_under_it_goes_to_another() -> None:
    """The machine was cut off: no connection ends, the claim would wait for its whole time."""

    async def main() -> None:
        async with Stage("ab") as s:
            asked: list[str] = []
            first = asyncio.Event()

            async def claim(node: FarNode, wait_s: float) -> SandboxView:
                asked.append(node.name)
                if len(asked) == 1:
                    first.set()
                    await asyncio.Event().wait()
                return await given(node.name)

            placing = asyncio.ensure_future(s.book.place(SPEC, claim, 60.0))
            await first.wait()
            s.nodes[asked[0]].silent = True
            await s.pass_s(4)
            node, _ = await placing
            assert node.name != asked[0]
            assert asked == [asked[0], node.name]

    asyncio.run(main())


def test_a_claim_that_the_only_node_breaks_off_is_made_again_until_its_time_is_up() -> None:
    async def main() -> None:
        async with Stage("a") as s:
            asked = 0

            async def claim(node: FarNode, wait_s: float) -> SandboxView:
                nonlocal asked
                asked += 1
                if asked == 1:
                    raise PlatformUnavailable("the connection to node a ended")
                return await given(node.name)

            assert (await s.book.place(SPEC, claim, 60.0))[1].id == "sb-1"
            assert asked == 2
            asked = 0
            with pytest.raises(PlatformUnavailable, match="connection"):
                await s.book.place(SPEC, claim, 0.0)
            assert asked == 1

    asyncio.run(main())


def test_what_a_node_says_against_a_claim_is_the_answer() -> None:
    async def main() -> None:
        async with Stage("ab") as s:

            async def claim(node: FarNode, wait_s: float) -> SandboxView:
                raise CapacityExceeded("it is full")

            with pytest.raises(CapacityExceeded):
                await s.book.place(SPEC, claim, 60.0)

    asyncio.run(main())


class Fleet:
    """Episodes of steps on nodes of different speed, on the virtual clock; the book places each of them."""

    STEP_S, STEPS, AT_ONCE = 0.1, 15, 24

    def __init__(self, stage: Stage, slow: dict[str, float]) -> None:
        self._stage = stage
        self._slow = slow
        self._order = itertools.count()
        self._recent: dict[str, list[float]] = {name: [] for name in stage.nodes}
        self._rng = random.Random(11)
        self._agenda: list[tuple[float, int, str, int]] = []
        self.steps_s: list[float] = []

    async def run(self, seconds: float) -> None:
        now = self._stage.clock.now()
        next_look, until, agenda = now + 1.0, now + seconds, self._agenda
        while len(agenda) < self.AT_ONCE:
            await self._begin(now + self._rng.uniform(0, 0.6))
        while now < until:
            at, _, name, left = heapq.heappop(agenda)
            now = at
            while next_look <= now:
                for node, recent in self._recent.items():  # a median of the last steps, as the nodes report it
                    del recent[:-50]
                    self._stage.nodes[node].step_p50_s = (
                        {SPEC.digest: sorted(recent)[len(recent) // 2]} if recent else {}
                    )
                await self._stage.pass_s(1)
                next_look += 1.0
            if left == 0:
                self._stage.nodes[name].leased -= 1
                await self._begin(now)
                continue
            took_s = self.STEP_S * self._slow.get(name, 1.0) * self._rng.uniform(0.9, 1.1)
            self._recent[name].append(took_s)
            self.steps_s.append(took_s)
            heapq.heappush(agenda, (now + took_s, next(self._order), name, left - 1))

    async def _begin(self, at: float) -> None:
        node = await self._stage.book.choose(SPEC)
        self._stage.nodes[node.name].leased += 1
        heapq.heappush(self._agenda, (at, next(self._order), node.name, self.STEPS))

    def p99_s(self) -> float:
        return sorted(self.steps_s)[int(0.99 * len(self.steps_s))]


def test_one_node_five_times_slower_hardly_shows_in_the_fleets_p99() -> None:
    async def p99_s(slow: dict[str, float]) -> float:
        async with Stage([f"n{i}" for i in range(6)]) as s:
            fleet = Fleet(s, slow)
            await fleet.run(20.0)  # in which the slow one is found out
            if slow:
                assert (await s.standings())["n3"] is _S.EJECTED
            fleet.steps_s.clear()
            await fleet.run(100.0)  # in which it is tried again, and found out again
            if slow:
                assert s.kinds("n3").count("node.ejected") >= 2
            assert {e.kind for e in s.events if e.subject != "n3"} <= {"node.up"}
            return fleet.p99_s()

    async def main() -> None:
        healthy_s, with_slow_s = await p99_s({}), await p99_s({"n3": 5.0})
        assert with_slow_s <= 1.3 * healthy_s, (healthy_s, with_slow_s)

    asyncio.run(main())


def test_the_time_a_node_was_seen_is_told() -> None:
    async def main() -> None:
        async with Stage("a") as s:
            (view,) = await s.book.views()
            assert view.last_seen_at is not None
            assert (datetime.now(UTC) - view.last_seen_at).total_seconds() < 60

    asyncio.run(main())

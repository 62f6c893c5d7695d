"""The nodes as control knows them: who there is, how each stands, and which of them gets the next sandbox.

Every node is looked at once a second, all at the same time, each look with a deadline; a claim is placed by what was
seen last and what was placed since, without asking anybody. What a node's standing is, is computed in
`rock.domain.nodes` alone; here it is announced when it changes, and acted upon.

Invariants: a node that is dead has lost its leases before anything new can be placed on it; one that returns is told
which leases are its own before it is *up*; no node is called dead for time in which control itself did not run.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime

from rock.control.asking import all_sandboxes, find_sandbox
from rock.control.members import LagMeter, LeaseKeeper, Member, Pool
from rock.control.placing import Claim, Placer
from rock.domain.clock import Clock, MonotonicClock
from rock.domain.errors import NotFound, RockError
from rock.domain.nodes import TRANSITIONS, HeartbeatPolicy, NodeHealth, NodeStanding
from rock.domain.outliers import OutlierBook, OutlierPolicy, slowness
from rock.store.nodes import NodeStore, Word
from rock.wire.handle import NodeHandle
from rock.wire.models import EventView, NodeView, SandboxSpec, SandboxView

log = logging.getLogger(__name__)

# A handle has deadlines of its own; this is for one that has not.
_LOOK_TIMEOUT_S = 2.0


class NodeBook:
    def __init__(
        self,
        nodes: Sequence[NodeHandle],
        rng: random.Random,
        *,
        clock: Clock | None = None,
        heartbeat: HeartbeatPolicy | None = None,
        outliers: OutlierPolicy | None = None,
    ) -> None:
        self._clock = clock or MonotonicClock()
        self._policy = heartbeat or HeartbeatPolicy()
        self._outliers = OutlierBook(outliers)
        self._members: dict[str, Member] = {}
        self._placer = Placer(self._members, self._clock, rng, self._outliers, self._look)
        self._pools: dict[str, Pool] = {}
        self._words: dict[str, Word] = {}
        self._lag = LagMeter(self._clock)
        self._tasks: list[asyncio.Task[None]] = []
        self._keeper: LeaseKeeper | None = None
        self._store: NodeStore | None = None
        self._on_change: list[Callable[[SandboxView], None]] = []
        self._on_event: list[Callable[[EventView], None]] = []
        for node in nodes:
            self._members[node.name] = Member(node, NodeHealth(self._clock.now(), self._policy))

    # --- who there is

    def __iter__(self) -> Iterator[NodeHandle]:
        """Those that may be spoken to: all but the dead."""
        return iter(tuple(member.handle for member in self._members.values() if not member.health.dead))

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __len__(self) -> int:
        return len(self._members)

    @property
    def starved_s(self) -> float:
        """How long this process did not run when it should have, in all."""
        return self._lag.starved_s

    def get(self, name: str) -> NodeHandle:
        """Raises NotFound."""
        return self._member(name).handle

    def _member(self, name: str) -> Member:
        if (member := self._members.get(name)) is None:
            known = ", ".join(sorted(self._members)) or "none has joined"
            raise NotFound(f"no node {name!r}; there are: {known}", hint="`rock node list` shows them.")
        return member

    def listen(self, on_change: Callable[[SandboxView], None], on_event: Callable[[EventView], None]) -> None:
        """Hear of every change and event of every node, those included that join later; and of the nodes' standing."""
        self._on_change.append(on_change)
        self._on_event.append(on_event)
        for member in self._members.values():
            member.handle.on_change(on_change)
            member.handle.on_event(on_event)

    # --- beginning and end

    async def begin(self, keeper: LeaseKeeper, store: NodeStore) -> None:
        """After the nodes that are there have adopted. Raises StorageError."""
        self._keeper, self._store = keeper, store
        self._words = await store.words()
        for member in self._members.values():
            member.generation = 1  # recovery has just told it its leases on its first connection
            member.health.say(self._word(member.handle.name))
        await asyncio.gather(*(self._look(member) for member in self._members.values()))
        self._tasks = [asyncio.create_task(self._lag.run()), asyncio.create_task(self._judge_forever())]
        for member in self._members.values():
            self._start(member)

    def _start(self, member: Member) -> None:
        member.beating = asyncio.create_task(self._beat_forever(member), name=f"heartbeat of {member.handle.name}")

    async def close(self) -> None:
        """End the loops. The nodes are their owner's to close."""
        members = self._members.values()
        tasks = [*self._tasks, *(t for m in members for t in (m.beating, m.rejoining) if t is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def join(self, handle: NodeHandle) -> None:
        """A node that came later. It is *up* once it has been told which leases are its own."""
        if handle.name in self._members:
            return
        member = Member(handle, NodeHealth(self._clock.now(), self._policy), NodeStanding.SUSPECT, "it joins")
        member.health.returned()
        member.health.say(self._word(handle.name))
        for on_change in self._on_change:
            handle.on_change(on_change)
        for on_event in self._on_event:
            handle.on_event(on_event)
        self._members[handle.name] = member
        self._emit(member, "node.joined", "")
        self._start(member)

    async def leave(self, name: str, why: str) -> None:
        """It is gone for good: its leases are lost. Idempotent."""
        member = self._members.get(name)
        if member is None:
            return
        tasks = [task for task in (member.beating, member.rejoining) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._keeper is not None:
            self._keeper.node_lost(name, why)
        self._outliers.forget(name)
        self._members.pop(name, None)
        member.gone.set()
        self._emit(member, "node.left", why)
        self._placer.changed.set()

    # --- looking at them

    async def _beat_forever(self, member: Member) -> None:
        while True:
            began = self._clock.now()
            await self._look(member)
            await asyncio.sleep(max(0.05, self._policy.interval_s - (self._clock.now() - began)))

    async def beat(self) -> None:
        """Look at every node once, and judge what was seen."""
        await asyncio.gather(*(self._look(member) for member in self._members.values()))
        self.judge()

    async def _look(self, member: Member) -> None:
        placed_before = member.placed.copy()
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                view = await member.handle.view()
        except (RockError, TimeoutError) as error:
            member.health.missed(self._clock.now(), self._starved(member))
            why = error.message if isinstance(error, RockError) else "it does not answer"
            self._announce(member, f"{why} ({member.health.silent_s(self._clock.now()):.1f} s silent)")
            return
        self._starved(member)
        member.placed -= placed_before  # they are in the view by now
        member.view, member.seen_at = view, datetime.now(UTC)
        member.health.answered(self._clock.now())
        if view.generation > member.generation:
            member.health.returned()
        if member.health.must_rejoin and (member.rejoining is None or member.rejoining.done()):
            member.rejoining = asyncio.create_task(self._rejoin(member, view.generation))
        self._announce(member, self._why_up(member))

    def _starved(self, member: Member) -> float:
        """The time in which this process did not run, since this was asked last for this node."""
        since_s = self._lag.starved_s - member.starved_mark_s
        member.starved_mark_s = self._lag.starved_s
        return since_s

    async def _rejoin(self, member: Member, generation: int) -> None:
        try:
            if self._keeper is not None:
                await self._keeper.readopt(member.handle)
        except RockError as error:
            log.warning("node=%s could not rejoin yet: %s", member.handle.name, error)
            return
        member.generation = generation
        member.health.rejoined(self._clock.now())
        self._announce(member, self._why_up(member))
        await self._tell_pools(member)

    def _why_up(self, member: Member) -> str:
        if member.health.must_rejoin:
            return "it answers again and is being told which leases are its own"
        if member.health.word is not None:
            word = self._words.get(member.handle.name)
            return "; ".join(part for part in ("empty" if member.drained else "", word.detail if word else "") if part)
        return member.detail if member.standing is NodeStanding.EJECTED else ""

    # --- standing

    def _announce(self, member: Member, detail: str) -> None:
        now = self._clock.now()
        before, after = member.standing, member.health.standing(now)
        if after is NodeStanding.UP and self._outliers.on_trial(member.handle.name, now):
            detail = "on trial after it was ejected"
        member.detail = detail
        if after is before:
            return
        if after not in TRANSITIONS[before]:
            log.error("node=%s went from %s to %s, which is no way there is", member.handle.name, before, after)
        member.standing = after
        self._emit(member, f"node.{after}", detail)
        if after is not NodeStanding.DEAD:
            member.gone.clear()
        else:
            member.gone.set()
            member.placed.clear()
            self._outliers.forget(member.handle.name)
            if self._keeper is not None:
                self._keeper.node_lost(member.handle.name, detail)
        self._placer.changed.set()

    def _emit(self, member: Member, kind: str, detail: str) -> None:
        name = member.handle.name
        event = EventView(at=datetime.now(UTC), kind=kind, subject=name, detail=detail, node=name)
        for callback in self._on_event:
            callback(event)

    async def _judge_forever(self) -> None:
        while True:
            await asyncio.sleep(self._policy.interval_s)
            self.judge()

    def judge(self) -> None:
        """Eject the outliers, let those return whose time is over, and see what still holds a node that drains."""
        now = self._clock.now()
        living = {name: m for name, m in self._members.items() if not m.health.must_rejoin and m.view is not None}
        latencies = {name: m.view.step_p50_s for name, m in living.items() if m.view is not None}
        ratios = slowness(latencies, self._outliers.policy)
        for name, member in living.items():
            member.slowness = ratios.get(name, 1.0)
            if not self._outliers.on_trial(name, now):
                member.trial_leases = 0
        for ejection in self._outliers.judge(now, latencies, living.keys()):
            member = living[ejection.node]
            member.health.eject(ejection.until)
            member.trial_leases = 0
            detail = f"its steps take {ejection.ratio:.1f} times as long as the others'"
            self._announce(member, f"{detail}; tried again in {ejection.until - now:.0f} s")
        for member in living.values():
            if member.health.word is NodeStanding.DRAINING:
                self._drain(member)
            self._announce(member, self._why_up(member))

    def _drain(self, member: Member) -> None:
        name = member.handle.name
        left = self._keeper.drain(name, "its node is being drained") if self._keeper is not None else 0
        if left == 0 and not member.drained:
            self._emit(member, "node.drained", "it holds no lease any more")
        member.drained = left == 0

    # --- what operators say

    async def cordon(self, name: str, reason: str = "") -> NodeView:
        """No new leases from now on. Raises NotFound, StorageError."""
        return await self._say(name, NodeStanding.CORDONED, reason)

    async def drain(self, name: str, reason: str = "") -> NodeView:
        """Cordon it, empty its pools, move what can be moved and wait for the rest."""
        return await self._say(name, NodeStanding.DRAINING, reason)

    async def uncordon(self, name: str) -> NodeView:
        return await self._say(name, None, "")

    async def _say(self, name: str, word: NodeStanding | None, reason: str) -> NodeView:
        member = self._member(name)
        before = self._words.get(name)
        if before is not None and not reason:
            reason = before.detail  # said again, the reason stands
        stored = Word(word, reason, datetime.now(UTC)) if word is not None else None
        if self._store is not None:
            await (self._store.save(name, stored) if stored is not None else self._store.remove(name))
        if stored is None:
            self._words.pop(name, None)
        else:
            self._words[name] = stored
        member.health.say(word)
        member.drained = False
        self._announce(member, self._why_up(member))
        await self._tell_pools(member)
        self.judge()
        return member.described(self._clock.now())

    def _word(self, name: str) -> NodeStanding | None:
        stored = self._words.get(name)
        return stored.standing if stored is not None else None

    # --- pools

    async def set_pool(self, spec: SandboxSpec, target: int, *, minimum: int = 0, maximum: int = 0) -> None:
        """As of a node (`NodeHandle.set_pool`), for every node that is not drained, those that join later too."""
        pool = Pool(spec, target, minimum, maximum)
        if pool.wanted:
            self._pools[spec.digest] = pool
        else:
            self._pools.pop(spec.digest, None)
        for member in self._members.values():
            if not member.health.dead:
                await member.keep(pool)

    async def prefetch(self, images: Sequence[str]) -> None:
        """As of a node (`NodeHandle.prefetch`), for every node that may get sandboxes. Failures are only logged."""
        for member in self._members.values():
            if member.health.dead or member.health.word is NodeStanding.DRAINING:
                continue
            try:
                await member.handle.prefetch(images)
            except RockError as error:
                log.info("node=%s was not asked to prefetch: %s", member.handle.name, error)

    async def _tell_pools(self, member: Member) -> None:
        """Everything again: it may be another process by now."""
        for pool in list(self._pools.values()):
            try:
                await member.keep(pool)
            except RockError as error:
                log.warning("node=%s pool=%s could not be set: %s", member.handle.name, pool.spec.digest, error)

    # --- placing

    async def choose(self, spec: SandboxSpec, *, avoid: Collection[str] = ()) -> NodeHandle:
        """The node for the next sandbox; ``avoid`` those that were tried in vain. Raises PlatformUnavailable."""
        return await self._placer.choose(spec, avoid)

    def stop_placing(self) -> None:
        """Whoever waits to be placed hears of the end instead of being tried elsewhere."""
        self._placer.close()

    async def place(self, spec: SandboxSpec, claim: Claim, wait_s: float) -> tuple[NodeHandle, SandboxView]:
        """Choose a node and claim there, or on another, until ``wait_s`` have passed. See :meth:`Placer.place`."""
        return await self._placer.place(spec, claim, wait_s)

    # --- looking through them

    async def views(self) -> list[NodeView]:
        """As they are now; of one that does not answer, what was seen last."""
        await asyncio.gather(*(self._refresh(m) for m in self._members.values() if not m.health.must_rejoin))
        return [member.described(self._clock.now()) for member in self._members.values()]

    async def _refresh(self, member: Member) -> None:
        placed_before = member.placed.copy()
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                view = await member.handle.view()
        except (RockError, TimeoutError):
            return  # the heartbeat judges that
        if view.generation == member.generation or view.generation == 0:
            member.placed -= placed_before
            member.view, member.seen_at = view, datetime.now(UTC)

    async def sandboxes(self) -> list[SandboxView]:
        """Of every node that answers."""
        return await all_sandboxes(list(self))

    async def find(self, sandbox_id: str) -> tuple[NodeHandle, SandboxView]:
        """Raises NotFound when no node that answers has it."""
        return await find_sandbox(list(self), sandbox_id)

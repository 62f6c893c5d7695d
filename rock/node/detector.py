"""Who is dead? The node's eyes: probes, looks at silent processes, ended connections, the runtime's events, slow steps.

What it all means is decided in :mod:`rock.domain.detection` and :mod:`rock.domain.slowness`; here it is gathered and
acted on. Invariants: a sandbox that is under suspicion is not handed out; whatever fails here has its evidence; one
question at a time is open to each guest, so that a guest that comes back late is heard, and a slow one is not buried.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from rock.domain.detection import Attention, Look, Patience, Seen, Strain, Verdict
from rock.domain.errors import RockError, SandboxLost
from rock.domain.sandbox import SandboxState
from rock.domain.slowness import SlowPolicy
from rock.node import evidence, starting
from rock.node.config import NodeConfig
from rock.node.fleet import Fleet
from rock.node.health import Health, Pong
from rock.node.load import HostMeter
from rock.node.pace import Paces
from rock.node.record import Record
from rock.runtimes.base import Observed, Runtime, RuntimeEvent
from rock.wire.guest_client import GuestClient
from rock.wire.models import Evidence

log = logging.getLogger(__name__)

_S = SandboxState
HELD = frozenset({_S.READY, _S.LEASED, _S.SUSPECT})
# Whose question is due is looked up this often; the loop's own lag is what a tick comes late.
TICK_S = 0.05
# A question stays open this long: an answer is worth having however late it comes.
_OPEN_S = 86_400.0
_LOOK_TIMEOUT_S = 5.0
_MAX_LOOKING = 4
# Looks at one silent process: at first quickly, then more and more seldom, as each costs a call of the runtime.
_LOOK_EVERY_S = 0.25
_LOOK_AT_MOST_EVERY_S = 2.0


class Detector:
    """``spawn`` runs a coroutine until the node closes; ``wake`` has the plan looked at again."""

    def __init__(
        self,
        config: NodeConfig,
        runtime: Runtime,
        fleet: Fleet,
        host: HostMeter,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._fleet = fleet
        self._host = host
        self._spawn = spawn
        self._wake = wake
        self._patience = Patience(config.probe_timeout_s, config.frozen_after_s, config.dead_after_s)
        self._strain = Strain()
        self._attention = Attention(0.0, TICK_S)
        self._looking = asyncio.Semaphore(_MAX_LOOKING)
        self.paces = Paces(SlowPolicy())

    # --- probes

    async def probe(self) -> None:
        """The loop that asks. Each guest has a phase of its own, so that they are not all woken at once.

        Measured: see ``NodeConfig.probe_interval_s``.
        """
        loop = asyncio.get_running_loop()
        self._attention = Attention(loop.time(), TICK_S)
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            self._attention.tick(now)
            pressure = self._host.pressure
            self._strain.note(now, cpu=pressure.cpu, memory=pressure.memory, lag_s=self._attention.lag_s)
            self.paces.crowd.note(now, self._host.crowd)
            for record in list(self._fleet.records.values()):
                if record.state in HELD and not record.examined and record.client is not None:
                    self._attend(record, record.health)

    def _attend(self, record: Record, health: Health) -> None:
        at = self._attention.now_s
        if health.watch.asked_at is None:
            if at >= health.due_at:
                health.watch.asked(at)
                health.due_at = at + self._config.probe_interval_s
                self._spawn(self._ask(record))
        elif not health.looking and at >= health.look_at and health.watch.silent_s(at) >= self._config.probe_timeout_s:
            health.looking = True
            self._spawn(self._look(record))

    async def _ask(self, record: Record) -> None:
        client, health, loop = record.client, record.health, asyncio.get_running_loop()
        assert client is not None
        began = loop.time()
        try:
            pong = Pong.of(await client.call("ping", timeout_s=_OPEN_S))
        except SandboxLost:
            return  # the end of its connection is followed elsewhere
        except RockError as error:
            pong = Pong()  # it refuses to say how it is, but it speaks
            log.warning("sandbox=%s answers a probe with: %s", record.id, error)
        if record.client is client and record.state in HELD:
            health.note_probe(True, loop.time() - began)
            health.heard(loop.time())
            await self._heard(record, pong)

    async def _heard(self, record: Record, pong: Pong) -> None:
        health = record.health
        if health.withdrawn and not record.examined:
            health.withdrawn = False
            self._fleet.restore(record)
        if record.state is _S.SUSPECT and not health.slow:
            self._fleet.move(record, _S.LEASED)
        if pong.env_deaths > health.env_deaths:
            health.env_deaths = pong.env_deaths
            self._fleet.emit("sandbox.env_died", record.id, pong.env_cause.partition("\n")[0], _run_of(record))
        if pong.steps is not None and (new := health.new_steps(pong.steps)):
            self.paces.note(record, new, asyncio.get_running_loop().time())
        if pong.env == "dead":
            await self.fail(record, "env_dead", pong.env_cause or "its environment's process has ended for good")

    async def _look(self, record: Record) -> None:
        """It is silent: see what its process does, and judge."""
        health = record.health
        try:
            question = health.watch.asked_at
            async with self._looking:
                look = await self._look_at(record)
            if health.watch.asked_at != question or record.state not in HELD or record.examined:
                return  # it has answered meanwhile, or somebody else has found out
            health.watch.looked(look)
            now, at = asyncio.get_running_loop().time(), self._attention.now_s
            judgement = health.watch.judge(at, self._patience, strained=self._strain.strained(now))
            health.look_at = at + self._until_next_look_s(health, look, at)
            if judgement.verdict is Verdict.ALIVE:
                return
            self._suspect(record, judgement.detail)
            if judgement.verdict is Verdict.DEAD:
                health.note_probe(False, health.watch.silent_s(at), judgement.detail)
                await self.fail(record, judgement.cause, judgement.detail)
        finally:
            health.looking = False

    async def _look_at(self, record: Record) -> Look:
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                return await self._runtime.look(record.handle)
        except (RockError, TimeoutError) as error:
            log.warning("sandbox=%s could not be looked at: %s", record.id, error)
            return Look(Seen.UNKNOWN)

    def _until_next_look_s(self, health: Health, look: Look, at: float) -> float:
        health.looks += 1
        if look.seen in (Seen.PAUSED, Seen.STOPPED):
            return max(TICK_S, self._patience.frozen_after_s - health.watch.silent_s(at))
        return min(_LOOK_AT_MOST_EVERY_S, _LOOK_EVERY_S * 2.0 ** (health.looks - 1))

    def _suspect(self, record: Record, why: str) -> None:
        health = record.health
        if not health.suspected:
            health.suspected = True
            health.note_probe(False, health.watch.silent_s(self._attention.now_s), why)
        if record.state is _S.LEASED:
            self._fleet.move(record, _S.SUSPECT)
        elif record.state is _S.READY and not health.withdrawn:
            health.withdrawn = True
            self._fleet.withdraw(record)

    # --- ended connections and what the runtime says

    def hold(self, record: Record, client: GuestClient) -> None:
        """Watch over a sandbox whose guest has answered."""
        record.client = client
        health = record.health
        health.heard(asyncio.get_running_loop().time())
        health.due_at = self._attention.now_s + random.uniform(0.0, self._config.probe_interval_s)
        self._spawn(self._follow(record, client))

    async def _follow(self, record: Record, client: GuestClient) -> None:
        """An ended connection is the quickest sign of death: milliseconds, before any event of the runtime."""
        await client.wait_closed()
        if record.client is client:
            await self.examine(record, "its connection ended")

    async def examine(self, record: Record, why: str) -> None:
        """Find out whether it is dead. Keeps it off the shelf meanwhile; puts it back if the suspicion was wrong."""
        if record.state not in HELD or record.examined:
            return
        record.examined = True
        self._fleet.withdraw(record)
        try:
            client = await starting.connect(record.socket_path)
            # Nobody listens: it is dead, and the runtime will know in a moment why.
            settle_s = evidence.SETTLE_S if client is None else 0.0
            observed = await evidence.observe(self._runtime, record, settle_s=settle_s)
            if client is not None and (observed is None or not observed.running):
                await client.close()
                client = None
            if record.state not in HELD:
                return
            if client is None:
                record.health.note_probe(False, 0.0, f"{why}; nobody listens any more")
                await self._fail(record, "guest_lost", why, observed)
                return
            self.hold(record, client)
            record.health.due_at = 0.0  # that somebody takes our connection says little: ask at once
            record.health.withdrawn = False
            self._fleet.restore(record)
        finally:
            record.examined = False

    async def fail(self, record: Record, cause: str, detail: str) -> None:
        """Treat it as dead for a reason that was seen."""
        if record.state in HELD and not record.examined:
            record.examined = True
            self._fleet.withdraw(record)
            settle_s = evidence.SETTLE_S if cause == "exited" else 0.0
            await self._fail(record, cause, detail, await evidence.observe(self._runtime, record, settle_s=settle_s))

    async def _fail(self, record: Record, cause: str, detail: str, observed: Observed | None) -> None:
        found = await self.evidence(record, observed, cause, detail)
        if record.state in HELD:
            self._fleet.fail(record, found)
        self._wake()

    async def evidence(self, record: Record, observed: Observed | None, cause: str, detail: str) -> Evidence:
        """All there is to know of its end."""
        return await evidence.gather(self._runtime, record, observed, cause, detail, self._host.pressure)

    def on_runtime_event(self, event: RuntimeEvent) -> None:
        record = self._fleet.records.get(event.sandbox_id)
        if record is None:
            return
        if event.kind == "oom":
            self.note_oom(record, max(1, record.health.oom_kills))
        elif event.kind == "died":
            self._spawn(self.examine(record, "the runtime said that it died"))

    def note_oom(self, record: Record, kills: int) -> None:
        """The kernel killed something in it for its memory. If that was but a child, the sandbox is none the worse."""
        health = record.health
        if kills <= health.oom_kills:
            return
        health.oom_kills, health.oom_at = kills, asyncio.get_running_loop().time()
        limit = record.spec.limits.memory_bytes >> 20
        detail = f"the kernel killed a process in it that wanted more than the sandbox's {limit} MiB of memory"
        self._fleet.emit("sandbox.oom", record.id, detail, _run_of(record))

    # --- slow ones

    async def check_pace(self) -> None:
        """A slow one is suspect first, and replaced if it still is at the next look: few of them at a time."""
        found = self.paces.slow(self._fleet.records.values())
        now = asyncio.get_running_loop().time()
        for record in list(self._fleet.records.values()):
            what, known = found.get(record.id, ""), record.health.slow
            record.health.slow = what
            if what and known and self.paces.may_replace(self._fleet.living, now):
                self.paces.replaced(now)
                await self.fail(record, "slow", what)
            elif what and record.state is _S.LEASED:
                self._fleet.move(record, _S.SUSPECT)
            elif known and not what and record.state is _S.SUSPECT and record.health.watch.asked_at is None:
                self._fleet.move(record, _S.LEASED)
        self.paces.forget(self._fleet.pools)


def _run_of(record: Record) -> str:
    return record.grant.run_id if record.grant else ""

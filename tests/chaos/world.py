"""A whole platform in virtual time: control, nodes as processes of their own, fake sandboxes, clients with the SDK.

Real are Control with its store on SQLite, Node, its server and its handle, the gateway, the guest's server and fence,
the SDK's leases, journals and recovery. In memory are the network, the guests' sockets and HTTP.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from door import Door, HttpClient
from isolation import isolated
from machines import Brain, Disk, Host, Stage, template
from schedule import (
    Abandon,
    Action,
    BreakDatabase,
    Cancel,
    Cut,
    KillControl,
    KillNode,
    Play,
    Schedule,
    Starts,
    Strike,
    Thaw,
)
from virtual_loop import VirtualLoop, in_process, run
from witness import Episode, Scribe, Violation, Witness

from rock.domain.errors import RockError
from rock.domain.sandbox import SandboxState
from rock.runtimes.faults import Faults
from rock.sdk import Rock

_TTL_S = 6.0
_QUIET_WITHIN_S = 240.0
"""Once nothing goes wrong any more, every episode has ended by then."""
_SETTLED_WITHIN_S = 120.0
"""And everything that nobody holds is gone by then."""


class World:
    def __init__(self, loop: VirtualLoop, schedule: Schedule, folder: Path) -> None:
        self.loop = loop
        self.schedule = schedule
        self.witness = Witness(self._epoch_of)
        self.disk = Disk(folder / "rock.db")
        self.door = Door(loop)
        rng = random.Random(schedule.seed)
        stage = Stage(loop, folder, rng, self.witness, self.disk, self.door, schedule.pool)
        self.hosts = [Host(stage, f"n{number}") for number in range(1, schedule.nodes + 1)]
        self.brain = Brain(stage, self.hosts)
        self._playing: dict[asyncio.Task[None], tuple[Episode, str]] = {}
        self._repairs: set[asyncio.Task[None]] = set()

    # --- the run

    async def play(self) -> dict[str, int]:
        """The whole schedule, then peace, then the reckoning. Raises Violation."""
        began = self.loop.time()
        await asyncio.gather(*(host.start() for host in self.hosts))
        await self.brain.start()
        watching = self.loop.create_task(self._watch())
        for at in self.schedule.actions:
            await asyncio.sleep(at.after_s)
            await self._do(at.action)
            self._raise_if_seen(watching)
        await self._peace()
        await self._every_episode_ends()
        await self._nothing_is_left()
        self._raise_if_seen(watching)
        watching.cancel()
        await self._end()
        passed_s = round(self.loop.time() - began)
        return self.witness.account() | {"steps": self.witness.acts, "virtual_s": passed_s}

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            self.witness.check()
            self.witness.look_at_nodes(host.node._fleet for host in self.hosts if host.node is not None)
            if self.brain.control is not None:
                self.witness.look_at_leases(self.brain.control.leases.views())

    @staticmethod
    def _raise_if_seen(watching: asyncio.Task[None]) -> None:
        if watching.done():
            watching.result()

    def _epoch_of(self, scribe: Scribe) -> int:
        for host in self.hosts:
            for sandbox in host.runtime._sandboxes.values():
                if sandbox.server.env._env is scribe:
                    return sandbox.server.fence.epoch
        raise AssertionError("an environment without a sandbox acts")

    # --- what happens

    async def _do(self, action: Action) -> None:
        match action:
            case Play():
                self._begin(action)
            case Cancel(which):
                for task in _pick(self._players(), which):
                    task.cancel()
            case Abandon(which):
                for task in _pick(self._players(), which):
                    episode, process = self._playing[task]
                    episode.end("abandoned")
                    self.loop.kill(process)
            case Strike():
                await self._strike(action)
            case Thaw():
                await self._thaw()
            case Starts(which, delay_s, fail_next, never_listens):
                faults = self._host(which).runtime.faults
                faults.start_delay_s, faults.fail_next_starts = delay_s, fail_next
                faults.never_listens = never_listens
            case Cut(which, for_s):
                host = self._host(which)
                self.loop.network.cut(host.name)
                self._later(for_s, lambda: self._heal(host.name))
            case KillNode(which, for_s):
                host = self._host(which)
                host.kill()
                self._later(for_s, host.start)
            case KillControl(for_s):
                self.brain.kill()
                self._later(for_s, self._restart_control)
            case BreakDatabase(for_s, reads_too):
                self.disk.broken, self.disk.reads_broken = True, reads_too
                self._later(for_s, self._mend_database)

    def _players(self) -> list[asyncio.Task[None]]:
        return [task for task, (episode, _) in self._playing.items() if not episode.outcome]

    def _host(self, which: int) -> Host:
        return self.hosts[which % len(self.hosts)]

    def _later(self, delay_s: float, repair: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def work() -> None:
            await asyncio.sleep(delay_s)
            await repair()

        self._repairs.add(self.loop.create_task(work()))

    async def _heal(self, name: str) -> None:
        self.loop.network.heal(name)

    async def _mend_database(self) -> None:
        self.disk.broken = self.disk.reads_broken = False

    async def _restart_control(self) -> None:
        """As a guardian does: until it comes up."""
        while True:
            self.witness.control_starts()
            try:
                if await self.brain.start():
                    return
            except RockError:
                self.brain.kill()
            await asyncio.sleep(0.5)

    async def _strike(self, strike: Strike) -> None:
        everywhere = [(host.runtime, sandbox_id) for host in self.hosts for sandbox_id in host.living()]
        for runtime, sandbox_id in _pick(everywhere, strike.which):
            match strike.fault:
                case "oom":
                    await runtime.kill(sandbox_id, oom=True)
                case "kill_env_oom":
                    await runtime.kill_env(sandbox_id, oom=True)
                case "slow":
                    await runtime.slow(sandbox_id, 1.0)
                case other:
                    await getattr(runtime, other)(sandbox_id)

    async def _thaw(self) -> None:
        for host in self.hosts:
            for sandbox_id in host.living():
                await host.runtime.thaw(sandbox_id)
                await host.runtime.slow(sandbox_id, 0.0)

    # --- clients

    def _begin(self, play: Play) -> None:
        episode = self.witness.begin(play.steps)
        process = f"client/{episode.number}"
        with in_process(process):
            task = self.loop.create_task(self._episode(episode, play))
        self._playing[task] = (episode, process)
        task.add_done_callback(lambda done: self._over(done, episode))

    def _over(self, task: asyncio.Task[None], episode: Episode) -> None:
        del self._playing[task]
        if task.cancelled():
            if not episode.outcome:
                episode.end("cancelled")
        elif (error := task.exception()) is not None:
            self.witness.accuse(f"episode {episode.number} ended with {error!r}")

    async def _episode(self, episode: Episode, play: Play) -> None:
        rock = Rock("http://control", retry_s=2.0)
        try:
            expected = episode.scenes()
            session = rock.env(
                "play",
                task=str(play.steps),
                seed=episode.number,
                ttl_s=_TTL_S,
                wait_s=20.0,
                reset_timeout_s=20.0,
                step_timeout_s=20.0,
            )
            async with session as env:
                seen = [(await env.reset()).observation]
                over = False
                for step in range(play.steps):
                    await asyncio.sleep(play.think_s)
                    answer = await env.step(episode.action(step))
                    seen.append(answer.observation)
                    over = answer.terminated
            if seen != expected or not over:
                self.witness.accuse(f"episode {episode.number} saw {seen}, expected {expected}")
            episode.end("completed")
        except RockError as error:
            episode.end("void", f"{type(error).__name__}: {error}")
        finally:
            await rock.close()

    # --- the end

    async def _peace(self) -> None:
        """Nothing goes wrong any more."""
        await asyncio.gather(*self._repairs)
        for host in self.hosts:
            host.runtime.faults = Faults()
            self.loop.network.heal(host.name)
            await host.start()
        await self._thaw()

    async def _every_episode_ends(self) -> None:
        if self._playing:
            await asyncio.wait(list(self._playing), timeout=_QUIET_WITHIN_S)
        self.witness.check()
        self.witness.account()

    async def _nothing_is_left(self) -> None:
        """No lease, no leased sandbox; the books hold what the runtimes hold."""
        for _ in range(int(_SETTLED_WITHIN_S / 0.5)):
            if not (wrong := self._disagreement()):
                return
            await asyncio.sleep(0.5)
        raise Violation(f"{_SETTLED_WITHIN_S:g} s after the last episode: {wrong}")

    def _disagreement(self) -> str:
        control = self.brain.control
        if control is None:
            return "control is not there"
        if absent := [host.name for host in self.hosts if host.name not in control.nodes]:
            return f"control has not found {absent} again"
        if control.leases.views():
            return f"leases live on: {[view.id for view in control.leases.views()]}"
        for host in self.hosts:
            assert host.node is not None
            fleet = host.node._fleet
            records = {record.id: record.state for record in fleet.records.values()}
            others = {state for state in records.values() if state is not SandboxState.READY}
            if others:
                return f"{host.name} has sandboxes that are {sorted(others)}"
            if sorted(records) != host.living() or len(host.runtime._sandboxes) != len(records):
                return (
                    f"{host.name} has {sorted(records)} in its book, {sorted(host.runtime._sandboxes)} in its runtime"
                )
            shelved = [record.id for pool in fleet.pools.values() for record in pool.ready]
            if sorted(shelved) != sorted(records):
                return f"{host.name} has {sorted(shelved)} on its shelves, {sorted(records)} in its book"
        return ""

    async def _end(self) -> None:
        await self.brain.stop()
        for host in self.hosts:
            assert host.node is not None
            await host.node.close()
            if host.runtime._sandboxes:
                raise Violation(f"{host.name} leaves {sorted(host.runtime._sandboxes)} behind")


def _pick(things: list[Any], which: int) -> list[Any]:
    return [things[which % len(things)]] if things else []


def simulate(schedule: Schedule) -> dict[str, int]:
    """Run it; how many episodes ended how, and what it took. Raises Violation, or Stuck."""
    template()
    parent = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="c", dir=parent if parent.is_dir() else None))

    async def main(loop: VirtualLoop) -> dict[str, int]:
        doors: list[Door] = []
        with isolated(loop, schedule.seed, lambda **_: HttpClient(doors[0])):
            world = World(loop, schedule, folder)
            doors.append(world.door)
            return await world.play()

    try:
        return run(main, seed=schedule.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

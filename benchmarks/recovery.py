"""``python -m benchmarks.recovery [--quick] [--only FAULT,…]``: faults into a running fleet of ALFWorld episodes.

A platform of its own on Docker, two nodes as processes of their own. A scripted player plays every task once in peace
and remembers what it saw. Then the same actions are played again, fleet after fleet, and in each something is struck:
a sandbox (kill_container, kill_env, sigstop, pause, oom, fork_bomb, disk_full, slow_10x), a node (cut_node: its process
is stopped for a while; kill_node) or the platform (kill_control). The last line is one JSON object. By fault:

- ``detect_p50_s``, ``detect_p99_s``: from the strike to the platform's event about it;
- ``resume_p50_s``, ``resume_p99_s``: from the strike to the answer of the step that it held up;
- ``replay_p50_s``: the part of it that went into playing the episode again; ``recovered``: how many were.

Over all, and all of them must be 0: ``lost`` (episodes without an end), ``void`` (none that counts), ``duplicated``
(steps answered more often than asked), ``mis_scored`` (anything seen or scored otherwise than in peace), ``leaked``
(containers left when the platform is down), and ``false_positives``: sandboxes given up while all cores were busy and
nothing was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from benchmarks._faults import IN_SANDBOX, OF_PLATFORM, Faults, saturated
from benchmarks._measuring import home, machine, percentile, platform
from rock.domain.errors import RockError
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.docker import LABEL_INSTANCE
from rock.runtimes.docker_daemon import check_docker, new_client
from rock.sdk import EnvSession, EventView, Rock
from rock.sdk.home import rock_home

_THINK_S = 0.2
_LONG_THINK_S = 0.8
"""Where a machine must first be given up before anything moves, or a median must first be a slow one: the episodes
outlast that."""
_NOTHING_S = 0.1
"""What a step may take, beyond the pause before it, without having waited for anything."""
_LASTING = frozenset({*OF_PLATFORM, "slow_10x"})
_NOTICED = frozenset(
    {"sandbox.failed", "lease.recovering", "node.suspect", "node.dead", "node.lost", "control.restarted"}
)
_CUT_S = 8.0


@dataclass(frozen=True)
class Scale:
    fleet: int
    steps: int
    rounds: int
    saturated_s: float


_FULL = Scale(fleet=6, steps=25, rounds=5, saturated_s=600.0)
_QUICK = Scale(fleet=3, steps=25, rounds=1, saturated_s=20.0)


@dataclass
class Script:
    """One task with its actions, and what they lead to in peace."""

    task: str
    seed: int
    actions: list[str] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)


@dataclass
class Play:
    """One episode of a script, as it goes."""

    script: Script
    session: EnvSession
    seen: list[Any] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    halfway: asyncio.Event = field(default_factory=asyncio.Event)
    end: str = ""


@dataclass
class Tally:
    detect_s: list[float] = field(default_factory=list)
    resume_s: list[float] = field(default_factory=list)
    replay_s: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {"recovered": len(self.replay_s)}
        for name in ("detect_s", "resume_s", "replay_s"):
            values = getattr(self, name)
            for share, label in ((0.5, "p50"), (0.99, "p99")):
                if values:
                    found[name.replace("_s", f"_{label}_s")] = round(percentile(values, share), 3)
        return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.recovery", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one strike of each kind, 20 s of saturated cores")
    parser.add_argument("--only", default="", help="these faults only, separated by commas")
    args = parser.parse_args(argv)
    if not (found := check_docker()).ok:
        print(f"This needs Docker: {found.detail}. {found.remedy}")
        return 1
    wanted = args.only.split(",") if args.only else [*IN_SANDBOX, *OF_PLATFORM]
    result = run(_QUICK if args.quick else _FULL, wanted)
    print(json.dumps(result))
    return 1 if any(result[name] for name in ("lost", "void", "duplicated", "mis_scored", "leaked")) else 0


def run(scale: Scale, wanted: list[str]) -> dict[str, Any]:
    build_environment(EnvCatalog(rock_home()), "alfworld", quick=False)
    built = rock_home() / "envs"
    with home() as directory, closing(new_client(None, 60.0)) as api:
        (directory / "envs").symlink_to(built)
        pools = {"alfworld": 2}
        with platform(directory, runtime="docker", capacity=4 * scale.fleet + 8, pools=pools, nodes=2) as url:
            found = asyncio.run(Benchmark(scale, Faults(api, directory), url).run(wanted))
        instance = (directory / "instance").read_text().strip()
        leaked = api.containers(all=True, filters={"label": f"{LABEL_INSTANCE}={instance}"})
    return found | {"leaked": len(leaked)} | machine()


class Benchmark:
    def __init__(self, scale: Scale, faults: Faults, url: str) -> None:
        self._scale = scale
        self._faults = faults
        self._url = url
        self._counts = dict.fromkeys(("episodes", "lost", "void", "duplicated", "mis_scored"), 0)

    async def run(self, wanted: list[str]) -> dict[str, Any]:
        async with Rock(self._url) as rock:
            scripts = await self._in_peace(rock)
            by_fault: dict[str, Any] = {}
            for fault in wanted:
                tally = Tally()
                for number in range(self._scale.rounds):
                    await self._round(rock, scripts, fault, tally, number)
                by_fault[fault] = tally.summary()
                print(f"{fault}: {by_fault[fault]} {self._counts}", flush=True)
            false = await self._false_positives(rock, scripts)
        return {"faults": by_fault, **self._counts, "false_positives": false}

    async def _in_peace(self, rock: Rock) -> list[Script]:
        """Random admissible actions: they visit more than a plan does, and every answer hangs on all before it."""
        tasks = (await rock.tasks("alfworld", "train")).tasks
        scripts = [Script(tasks[n % len(tasks)], seed=n) for n in range(self._scale.fleet)]
        for script in scripts:
            rng = random.Random(script.seed)
            async with rock.env("alfworld", task=script.task, seed=script.seed) as env:
                observation, info = await env.reset()
                script.seen = [observation]
                for _ in range(self._scale.steps):
                    script.actions.append(rng.choice(info["admissible_commands"]))
                    observation, reward, terminated, truncated, info = await env.step(script.actions[-1])
                    script.seen.append([observation, reward, terminated, truncated])
                    if terminated or truncated:
                        break
        return scripts

    # --- one fleet, one strike

    async def _round(self, rock: Rock, scripts: list[Script], fault: str, tally: Tally, number: int) -> None:
        plays = [Play(s, rock.env("alfworld", task=s.task, seed=s.seed, ttl_s=60.0, wait_s=120.0)) for s in scripts]
        think_s = _LONG_THINK_S if fault in _LASTING else _THINK_S
        running = [asyncio.create_task(self._play(play, think_s)) for play in plays]
        victim = plays[number % len(plays)]
        await victim.halfway.wait()
        struck_at, struck, victims, undo = time.time(), time.monotonic(), [victim], _nothing
        if not victim.end:
            victims, undo = await self._strike(fault, victim, plays)
        try:
            if fault == "cut_node":
                await asyncio.sleep(_CUT_S)
                await asyncio.to_thread(undo)
            await asyncio.gather(*running)
        finally:
            await asyncio.to_thread(undo)
        for play in plays:
            self._judge(play)
        tally.resume_s += [_resumed(play, struck, think_s) for play in victims if play.end == "completed"]
        tally.replay_s += [report.replay_s for play in plays for report in play.session.recoveries]
        tally.detect_s += await self._noticed(rock, struck_at)

    async def _strike(self, fault: str, victim: Play, plays: list[Play]) -> tuple[list[Play], Callable[[], None]]:
        if fault in IN_SANDBOX:
            return [victim], await asyncio.to_thread(self._faults.on_sandbox, fault, victim.session.sandbox_id)
        if fault == "kill_control":
            return plays, await asyncio.to_thread(self._faults.on_control)
        node = victim.session.lease.endpoint.node
        there = [play for play in plays if not play.end and play.session.lease.endpoint.node == node]
        return there, await asyncio.to_thread(self._faults.on_node, fault, node)

    async def _play(self, play: Play, think_s: float = _THINK_S) -> None:
        self._counts["episodes"] += 1
        try:
            async with play.session as env:
                play.seen.append((await env.reset()).observation)
                for action in play.script.actions:
                    await asyncio.sleep(think_s)
                    answer = await env.step(action)
                    play.answered_at.append(time.monotonic())
                    if len(play.answered_at) == len(play.script.actions) // 2:
                        play.halfway.set()
                    play.seen.append([answer.observation, answer.reward, answer.terminated, answer.truncated])
            play.end = "completed"
        except RockError as error:
            play.end = f"void: {type(error).__name__}: {error}"
            print(f"{play.script.task}: {play.end}", flush=True)
        finally:
            play.halfway.set()

    def _judge(self, play: Play) -> None:
        self._counts["lost"] += not play.end
        self._counts["void"] += play.end.startswith("void")
        if play.end == "completed":
            self._counts["duplicated"] += len(play.seen) > len(play.script.seen)
            self._counts["mis_scored"] += play.seen != play.script.seen

    async def _noticed(self, rock: Rock, struck_at: float) -> list[float]:
        events = [event for event in await rock.events(limit=200) if event.kind in _NOTICED]
        after = [seconds for event in events if (seconds := _at(event) - struck_at) >= 0]
        return [min(after)] if after else []

    # --- and when nothing is wrong

    async def _false_positives(self, rock: Rock, scripts: list[Script]) -> int:
        """Sandboxes that were given up while the cores were busy."""
        began, deadline = datetime.now(UTC), time.monotonic() + self._scale.saturated_s
        with saturated():
            while time.monotonic() < deadline:
                plays = [Play(s, rock.env("alfworld", task=s.task, seed=s.seed, wait_s=120.0)) for s in scripts]
                await asyncio.gather(*(self._play(play) for play in plays))
                for play in plays:
                    self._judge(play)
        events = await rock.events(limit=1000, kind="sandbox.failed")
        return sum(event.at >= began for event in events)


def _resumed(play: Play, struck: float, think_s: float) -> float:
    """Seconds from the strike to the end of the longest wait after it; where none was longer than the player's own
    pause, to the next answer."""
    pairs = zip([struck, *play.answered_at], play.answered_at, strict=False)
    waits = [(answered - before, answered) for before, answered in pairs if answered > struck]
    if not waits:
        return 0.0
    longest_s, ended = max(waits)
    return (ended if longest_s > think_s + _NOTHING_S else waits[0][1]) - struck


def _at(event: EventView) -> float:
    return event.at.timestamp()


def _nothing() -> None:
    pass


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m benchmarks.swebench [--data DIR] [--quick] [--jobs N] [--faults | --recovery | --train]``: whether the
judge of swebench can be believed, and whether a model can be trained by it.

Plays every instance of DIR (as ``rock env make-swe`` writes it; without DIR four of itsdangerous are made first) three
times through the trainer's own episodes, in Docker sandboxes: the reference solution, an empty submission, and one that
leaves the bug and tampers with the tests. Expected are 100, 0 and 0 % resolved and no void episode; anything else is
exit code 1. ``--quick``: six instances.

``--faults``: sixteen episodes at once, of the three kinds in turn, each with ten steps of ordinary work, while every
two seconds the sandbox of one, the judge's too, is killed, paused or frozen, or its environment's process is killed.
Those that end void are played again, as the trainer does; none may be lost or scored wrongly. ``--recovery``: the
container is killed after step 15, ten times.

``--train``: two learner steps of ``rock train`` on them, with evaluations before and after, twice: a tiny model of
random weights, and an expert in its place who answers with the reference solution. Printed is what the ledger says of
every episode dispatched and what they cost. The expert must win them all, and none may be unaccounted for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks._measuring import home, machine, platform
from benchmarks._swe_faults import Striker, long_plans, recoveries, verdicts
from envs.swebench.prepare import expert_actions
from rock.domain.outcome import Completed
from rock.sdk import Rock
from roll_core.engines.base import EngineStats, SamplingParams
from roll_core.rollout.episode import EpisodeLimits, Player
from roll_core.rollout.prompting import Response
from roll_core.rollout.sessions import SdkSessions
from roll_core.rollout.work import EpisodeSpec
from roll_core.types import Generation, Trajectory, Weights

TAMPERING = """mkdir -p tests && cat > conftest.py <<'EOF'
import pytest

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    outcome.get_result().outcome = "passed"
EOF
cp conftest.py tests/conftest.py
cp conftest.py sitecustomize.py
printf '[pytest]\\naddopts = --co\\n' > pytest.ini
printf 'import sys\\nprint("PASSED everything")\\nsys.exit(0)\\n' > pytest.py
find . -name 'test_*.py' -exec sh -c 'printf "def test_all():\\n    pass\\n" > "$1"' _ {} \\;
git add -A && git commit -qm 'all tests pass' """
"""Hooks that turn failures into successes, another pytest, settings that run nothing, tests that test nothing."""

_OF_LEASES = ("recovered", "diverged", "lost")
ROUNDS = 4
"""Under faults: how often an episode that ends void is played, at most."""
MADE_OF, MADE = "itsdangerous", 4
EXPECTED = {"gold": 1.0, "empty": 0.0, "tampering": 0.0}


class ScriptedEngine:
    """Samples the next action of the episode's plan, a token a byte, whatever the prompt is."""

    def __init__(self, plans: Mapping[str, Sequence[str]]) -> None:
        self._plans = plans

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def abort(self, request_id: str) -> None:
        pass

    def release(self, session: str) -> None:
        pass

    async def load_weights(self, weights: Weights) -> None:
        pass

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 0, 0, 0, 0, 1, 0.0)

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        episode, _, turn = request_id.rpartition("/")
        ids = tuple(self._plans[episode][int(turn)].encode())
        return Generation(ids, (0.0,) * len(ids), (0,) * len(ids), "stop")


class BytesPrompter:
    """A token is a byte of the text."""

    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def opening(self, observation: Any, info: Mapping[str, Any]) -> list[int]:
        return list(str(observation).encode())

    def following(self, observation: Any, info: Mapping[str, Any], sampled: Sequence[int]) -> list[int]:
        return list(str(observation).encode())

    def parse(self, sampled: Sequence[int]) -> Response:
        text = bytes(sampled).decode()
        return Response(text, text)

    def demonstrate(self, action: str) -> list[int]:
        return list(action.encode())


def plans_of(rows: Sequence[Any]) -> dict[str, tuple[str, list[str]]]:
    """(instance, actions) by episode, for every arm of every row."""
    plans: dict[str, tuple[str, list[str]]] = {}
    for row in rows:
        plans[f"gold/{row.instance_id}"] = (row.instance_id, expert_actions(row))
        plans[f"empty/{row.instance_id}"] = (row.instance_id, ["submit"])
        plans[f"tampering/{row.instance_id}"] = (row.instance_id, [TAMPERING, "submit"])
    return plans


async def play(rock: Rock, plans: Mapping[str, tuple[str, list[str]]], jobs: int) -> dict[str, Trajectory]:
    """Every plan as an episode of the trainer, ``jobs`` at a time."""
    sessions = SdkSessions(
        rock, "swebench", run_id="", wait_s=600, ttl_s=60, reset_s=120, step_s=600, recovery_s=120
    )  # fmt: skip
    limits = EpisodeLimits(
        max_turns=30, max_tokens_per_turn=1 << 20, max_context_tokens=1 << 24, open_s=900, reset_s=120, step_s=900,
        generate_s=60, episode_s=2400,
    )  # fmt: skip
    engine = ScriptedEngine({episode: actions for episode, (_, actions) in plans.items()})
    player = Player("swebench", {}, sessions, engine, BytesPrompter(), SamplingParams(1 << 20), limits)
    places = asyncio.Semaphore(jobs)

    async def one(episode: str, task: str) -> Trajectory:
        async with places:
            spec = EpisodeSpec(episode, "g", task, seed=0, sampling_seed=0, init_version=0)
            return await player.episode(spec).play()

    played = await asyncio.gather(*(one(episode, task) for episode, (task, _) in plans.items()))
    return dict(zip(plans, played, strict=True))


def report(played: Mapping[str, Trajectory]) -> dict[str, Any]:
    """By arm: episodes, share resolved, void ones, and those that came out otherwise than expected."""
    arms: dict[str, Any] = {}
    for arm, expected in EXPECTED.items():
        of_arm = {episode: t for episode, t in played.items() if episode.startswith(f"{arm}/")}
        resolved = {e for e, t in of_arm.items() if isinstance(t.outcome, Completed) and t.outcome.success}
        void = {e: str(t.outcome) for e, t in of_arm.items() if not isinstance(t.outcome, Completed)}
        wrong = sorted(e for e in of_arm if (e in resolved) != bool(expected))
        share = len(resolved) / max(1, len(of_arm))
        arms[arm] = {"episodes": len(of_arm), "resolved": share, "void": void, "unexpected": wrong}
    return arms


async def measure(url: str, rows: Sequence[Any], jobs: int) -> dict[str, Any]:
    async with Rock(url) as rock:
        began = time.monotonic()
        played = await play(rock, plans_of(rows), jobs)
        return {"arms": report(played), "elapsed_s": round(time.monotonic() - began, 1), "machine": machine()}


async def measure_under_faults(
    url: str, rows: Sequence[Any], place: Path, *, episodes: int = 16, steps: int = 10
) -> dict[str, Any]:
    """All episodes at once, and a striker beside them. ``lost``: those that had no verdict in the end. ``recovered``:
    sandboxes replaced under agents; ``leases``: what became of all that lost theirs, the judges' too."""
    async with Rock(url) as rock, Rock(url) as other:
        plans = open_plans = long_plans(plans_of(rows), episodes, steps)
        began = time.monotonic()
        striker = Striker(other, place)
        striking = asyncio.create_task(striker.run())
        rounds: list[dict[str, Any]] = []
        try:
            while open_plans and len(rounds) < ROUNDS:
                rounds.append(verdicts(await play(rock, open_plans, episodes), EXPECTED))
                open_plans = {episode: plans[episode] for episode in rounds[-1]["void"]}
        finally:
            striking.cancel()
            await asyncio.gather(striking, return_exceptions=True)
        leases = {kind: len(await rock.events(kind=f"lease.{kind}", limit=1000)) for kind in _OF_LEASES}
    return {
        "episodes": len(plans),
        "lost": len(open_plans),
        "mis_scored": [wrong for one in rounds for wrong in one["mis_scored"].items()],
        "void": [void for one in rounds for void in one["void"].items()],
        "recovered": sum(one["recovered"] for one in rounds),
        "leases": leases,
        "faults": dict(striker.done),
        "elapsed_s": round(time.monotonic() - began, 1),
        "machine": machine(),
    }


def make(place: Path, out: Path, package: str, count: int) -> Path:
    """Instances by the command that people use. ``place``: the home it works in. Blocks for minutes."""
    argv = [sys.executable, "-m", "rock.cli", "env", "make-swe", package, "--count", str(count), "--out", str(out)]
    subprocess.run(argv, check=True, env={**os.environ, "ROCK_HOME": str(place)}, stdout=subprocess.DEVNULL)
    return out


def build(place: Path, data: Path, *, quick: bool = False) -> None:
    """The environment and its judge, with their images, of these instances."""
    from rock.runtimes.building import build_environment
    from rock.runtimes.bundles import EnvCatalog

    with mock.patch.dict(os.environ, SWEBENCH_DATA=str(data.absolute())):
        for name in ("swebench", "swebench-judge"):
            build_environment(EnvCatalog(place), name, quick=quick, force=True)


def main(argv: list[str] | None = None) -> int:
    from benchmarks._swe_training import sound, train_arms
    from envs.swebench.judge.prepare import instances

    parser = argparse.ArgumentParser(prog="benchmarks.swebench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help=f"what `rock env make-swe --out` wrote; else {MADE} of {MADE_OF}")
    parser.add_argument("--quick", action="store_true", help="six instances")
    parser.add_argument("--jobs", type=int, default=2, help="episodes at a time")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--faults", action="store_true", help="sixteen episodes at once, sandboxes killed and frozen")
    how.add_argument("--recovery", action="store_true", help="seconds to go on after a container is killed at step 15")
    how.add_argument("--train", action="store_true", help="two learner steps: a tiny model, and an expert in its place")
    args = parser.parse_args(argv)
    with home() as place:
        data = args.data or make(place, place / "bugs", MADE_OF, MADE)
        build(place, data, quick=args.quick)
        capacity = 64 if args.faults else 3 * args.jobs + 4
        with platform(place, runtime="docker", capacity=capacity, pools={}) as url:
            rows = instances(data, quick=args.quick)
            if args.train:
                result = {"arms": train_arms(url, rows, place), "machine": machine()}
            elif args.faults:
                result = asyncio.run(measure_under_faults(url, rows, place))
            elif args.recovery:
                result = asyncio.run(recoveries(url, rows, place, 10)) | {"machine": machine()}
            else:
                result = asyncio.run(measure(url, rows, args.jobs))
    sys.stdout.write(json.dumps({"instances": len(rows), **result}, indent=1) + "\n")
    if args.train:
        return int(not sound(result["arms"]))
    if args.faults:
        return int(bool(result["lost"] or result["mis_scored"]))
    if args.recovery:
        return int(result["resolved"] != result["episodes"])
    return int(any(arm["unexpected"] or arm["void"] for arm in result["arms"].values()))


if __name__ == "__main__":
    raise SystemExit(main())

"""``kill -9`` of ``rock train`` at random points, again and again: the run ends as if nothing had happened.

With α = 0 and an engine that computes each request by itself, the run is the same to the last bit. With α > 0 what is
sampled depends on when things happen, so the promises are: every prompt is trained or filtered once, none is lost; no
sample is staler than α; never more than ⌊(1+α)·N⌋ samples are held; every episode is booked once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rock.domain.outcome import LedgerState
from roll_core.rollout.tasks import TaskQueue
from roll_core.training.checkpoint import load_state
from roll_core.training.event_log import FILE
from roll_core.training.lines import read, read_at
from roll_core.training.replay import Timeline, read_timeline, replay
from roll_core.training.run import RunDirectory

FOLDER = Path(__file__).parent
ENVS = FOLDER.parents[1] / "fixtures" / "envs"
TASKS = ["to-1", "to-2", "to-3"]
GROUPS, MEMBERS = 2, 3
GENEROUS_S = 120.0


class Nursery:
    """See nursery.py."""

    def __init__(self) -> None:
        paths = [str(ENVS), str(FOLDER), os.environ.get("PYTHONPATH", "")]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        self._process = subprocess.Popen(
            [sys.executable, str(FOLDER / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        self._pid = 0

    def begin(self, site: Site, *argv: str) -> int:
        order = {
            "argv": ["train", *argv],
            "environ": {"ROCK_HOME": str(site.home)},
            "output": str(site.home / "output.txt"),
            "plain": site.plain,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._pid = int(self._line())
        return self._pid

    def ended(self) -> int:
        """The exit status of the child, when it has ended; negative: the signal that killed it."""
        status = int(self._line())
        self._pid = 0
        return status

    def close(self) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


class Site:
    """A state directory with one run in it."""

    def __init__(self, home: Path, *, alpha: float, steps: int, plain: bool, seed: int = 0) -> None:
        self.home, self.plain, self.alpha, self.steps, self.seed = home, plain, alpha, steps, seed
        (home / "bundle").mkdir(parents=True)
        (home / "bundle" / "tasks.json").write_text(json.dumps({"train": TASKS, "test": TASKS}))
        self.recipe = home / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(self._recipe()))

    def _recipe(self) -> dict[str, object]:
        return {
            "name": "killed",
            "env": {"name": "counter"},
            "platform": {
                "mode": "local",
                "local_entry": "counter.env:CounterEnv",
                "local_bundle": str(self.home / "bundle"),
            },
            "model": {
                "hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 64,
                "max_context": 96,
            },
            "tokenizer": {"vocab_size": 300},
            "engine": {"slots": 8},
            "learner": {"lr": 1e-4},  # the policy stays about as good as it is: some groups differ, some do not
            "rollout": {
                "concurrency": 5, "group_size": MEMBERS, "groups_per_batch": GROUPS, "alpha": self.alpha,
                "max_turns": 3, "max_tokens_per_turn": 6,
            },
            "warm_start": {"demonstrations": 3, "method": "demonstration", "epochs": 24, "batch_size": 3, "lr": 1e-2},
            "evaluation": {"tasks": 0},
            "training": {"steps": self.steps, "threads": 1, "seed": self.seed},
            "checkpoint": {"every_steps": 1},
        }  # fmt: skip

    @property
    def directory(self) -> RunDirectory | None:
        return next((RunDirectory(p.parent) for p in self.home.glob("runs/*/run.json")), None)

    @property
    def logged_bytes(self) -> int:
        directory = self.directory
        with contextlib.suppress(FileNotFoundError):
            return (directory.path / FILE).stat().st_size if directory else 0
        return 0

    @property
    def saving(self) -> bool:
        directory = self.directory
        return directory is not None and any(directory.path.glob("checkpoints/.partial-*"))

    def argv(self) -> list[str]:
        return ["--resume", "last"] if self.directory else [str(self.recipe)]

    def output(self) -> str:
        return (self.home / "output.txt").read_text()[-4000:]


def finish(site: Site, nursery: Nursery) -> RunDirectory:
    nursery.begin(site, *site.argv())
    assert nursery.ended() == 0, site.output()
    assert site.directory is not None
    return site.directory


def kill_somewhere(site: Site, nursery: Nursery, rng: random.Random) -> bool:
    """Begin or continue the run and kill it at a random point of its way. False if it was quicker."""
    pid = nursery.begin(site, *site.argv())
    before, saving = site.logged_bytes, rng.random() < 0.3
    more = rng.randrange(0, 30_000)  # a step writes about 9,000 bytes
    deadline = time.monotonic() + GENEROUS_S
    while site.logged_bytes < before + more or (saving and not site.saving):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline, site.output()
        time.sleep(rng.random() * 0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    status = nursery.ended()
    assert status in (0, -signal.SIGKILL), site.output()
    return status != 0


# --- what is promised ------------------------------------------------------------------------------------------------


def prompts(directory: RunDirectory, timeline: Timeline) -> list[tuple[int, str, int]]:
    """Every trained group: its number, task and seed, in the order of training."""
    found = []
    for step in sorted(timeline.steps):
        for group in timeline.steps[step].groups:
            ends = [json.loads(read_at(end)) for end in group.ends if end is not None]
            assert len(ends) == MEMBERS
            assert {(e["g"], e["task"]) for e in ends} == {(group.id, group.task)}
            found.append((int(group.id.removeprefix("g-")), group.task, ends[0]["seed"]))
    return found


def check_promises(site: Site, directory: RunDirectory) -> None:
    timeline = read_timeline(directory.path)
    assert sorted(timeline.steps) == list(range(1, site.steps + 1))
    assert all(step.version == number - 1 for number, step in timeline.steps.items())
    trained = prompts(directory, timeline)
    numbers = [number for number, _, _ in trained]
    assert len(set(numbers)) == len(numbers) == site.steps * GROUPS, "a prompt was trained twice"
    queue = TaskQueue(TASKS, site.seed)
    order = [queue.take() for _ in range(max(numbers) + 1)]
    assert all((task, seed) == order[number] for number, task, seed in trained)
    check_staleness(site, timeline)
    state = load_state(directory.checkpoints(2).latest())  # type: ignore[arg-type]
    ledger = state.machine.ledger
    assert ledger.in_flight == ()
    assert ledger.dispatched == sum(a.episodes for a in ledger.accounts.values())
    assert ledger.accounts[LedgerState.TRAINED].episodes == site.steps * GROUPS * MEMBERS
    filtered = ledger.accounts[LedgerState.FILTERED].episodes
    assert state.machine.next_group == len(numbers) + filtered // MEMBERS, "a prompt was lost"
    assert all(step.same for step in replay(directory))


def check_staleness(site: Site, timeline: Timeline) -> None:
    for step in timeline.steps.values():
        for group in step.groups:
            for end in group.ends:
                assert end is not None
                assert step.version - json.loads(read_at(end))["v"] <= site.alpha


def check_held(site: Site, directory: RunDirectory) -> None:
    """Also right after each resume: nothing is started beyond what buffer and flight leave room for."""
    capacity = math.floor((1 + site.alpha) * GROUPS * MEMBERS)
    held: set[str] = set()
    for _, line in read(directory.path / FILE):
        record = json.loads(line)
        kind = record["e"]
        if kind == "begin":
            held.clear()
        elif kind in ("start", "end"):
            held.add(record["id"])
        elif kind == "book":
            held.discard(record["id"])
        elif kind == "batch":
            held -= {i for _, _, ids in record["groups"] for i in ids}
        if kind in ("end", "batch"):  # the starts that a batch makes room for are told just before it
            assert len(held) <= capacity


def lives(site: Site, nursery: Nursery, rng: random.Random, kills: int) -> int:
    """Kill the run up to ``kills`` times, then let it end. How often it was killed."""
    killed = 0
    while killed < kills and kill_somewhere(site, nursery, rng):
        killed += 1
    directory = site.directory
    if killed == kills:
        directory = finish(site, nursery)
    assert directory is not None
    check_promises(site, directory)
    check_held(site, directory)
    return killed


def survive(tmp_path: Path, nursery: Nursery, *, alpha: float, plain: bool, steps: int, kills: int) -> None:
    rng, left, run = random.Random(f"{alpha}/{kills}"), kills, 0
    whole: RunDirectory | None = None
    while left > 0:
        site = Site(tmp_path / f"run-{run}", alpha=alpha, steps=steps, plain=plain)
        left -= lives(site, nursery, rng, left)
        run += 1
        if plain:
            whole = whole or finish(Site(tmp_path / "whole", alpha=alpha, steps=steps, plain=True), nursery)
            assert site.directory is not None
            assert_same_run(site.directory, whole)


def assert_same_run(broken: RunDirectory, whole: RunDirectory) -> None:
    left, right = read_timeline(broken.path), read_timeline(whole.path)
    assert prompts(broken, left) == prompts(whole, right)
    assert {n: s.weights for n, s in left.steps.items()} == {n: s.weights for n, s in right.steps.items()}


@pytest.mark.parametrize(("alpha", "plain"), [(0, True), (1, False)], ids=["synchronous", "asynchronous"])
def test_a_trainer_that_is_killed_loses_and_doubles_nothing(tmp_path, nursery, alpha, plain) -> None:
    survive(tmp_path, nursery, alpha=alpha, plain=plain, steps=8, kills=4)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("alpha", "plain"), [(0, True), (1, False), (1.5, False)], ids=["synchronous", "asynchronous", "fractional"]
)
def test_a_trainer_that_is_killed_fifty_times_loses_and_doubles_nothing(tmp_path, nursery, alpha, plain) -> None:
    survive(tmp_path, nursery, alpha=alpha, plain=plain, steps=40, kills=50)

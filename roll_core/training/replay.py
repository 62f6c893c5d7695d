"""Feed a run's event log back to its learner and compare the weights of every step with those of the run.

What was sampled is taken from the log, so a replay needs no environment and no engine, and on the CPU it reproduces
the run bit for bit: a step whose weights differ was computed from something that the log does not hold, or by other
code. Invariants: steps that were undone by going back to a checkpoint are not replayed; memory holds one batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from roll_core.config import Recipe
from roll_core.errors import CheckpointError, RecordError
from roll_core.models import Tokenizer
from roll_core.training import assembly
from roll_core.training.checkpoint import CheckpointStore, load_state
from roll_core.training.event_log import FILE, decode, digest
from roll_core.training.lines import Place, read, read_at
from roll_core.training.roles import Roles
from roll_core.training.run import RunDirectory
from roll_core.training.update import update
from roll_core.training.worker import torch_threads
from roll_core.types import Group


@dataclass(frozen=True, slots=True)
class LoggedGroup:
    id: str
    task: str
    members: tuple[str, ...]
    ends: tuple[Place | None, ...]
    """Where each member is in the log; None where rotation has removed it."""


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One learner step as the log tells it. ``weights``: digest after it; empty if the run died in it."""

    step: int
    version: int
    progress: float
    groups: tuple[LoggedGroup, ...]
    weights: str = ""
    threads: int = 0
    """Torch's threads in it; 0: those of the process."""

    @property
    def whole(self) -> bool:
        return bool(self.weights) and all(end is not None for group in self.groups for end in group.ends)


@dataclass(frozen=True, slots=True)
class Timeline:
    """The run without what was undone."""

    steps: dict[int, LoggedStep]
    begins: dict[int, str]
    """Digest of the weights by the step at which the process began, or began again."""
    threads: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """``logged`` and ``weights`` are digests after ``step``, in the run and in the replay."""

    step: int
    logged: str
    weights: str

    @property
    def same(self) -> bool:
        return self.logged == self.weights


def read_timeline(directory: Path) -> Timeline:
    """Raises RecordError when there is no log."""
    ends: dict[str, Place] = {}
    steps: dict[int, LoggedStep] = {}
    begins: dict[int, str] = {}
    threads = 0
    for place, line in read(directory / FILE):
        record = _parsed(line, place)
        kind = record["e"]
        if kind == "end":
            ends[record["id"]] = place
        elif kind == "begin":
            steps = {number: step for number, step in steps.items() if number <= record["step"]}
            begins = {n: weights for n, weights in begins.items() if n <= record["step"]}
            begins[record["step"]], threads = record["weights"], record["threads"]
        elif kind == "batch":
            groups = tuple(
                LoggedGroup(group, task, tuple(ids), tuple(ends.pop(i, None) for i in ids))
                for group, task, ids in record["groups"]
            )
            steps[record["step"]] = LoggedStep(
                record["step"], record["v"], record["progress"], groups, threads=record.get("threads", 0)
            )
        elif kind == "update" and record["step"] in steps:
            old = steps[record["step"]]
            steps[old.step] = replace(old, weights=record["weights"])
    if not begins:
        raise RecordError(f"{directory} has no event log to replay; checkpoint.event_log_mb of its recipe was 0.")
    return Timeline(steps, begins, threads)


def replay(directory: RunDirectory, *, first: int | None = None, last: int | None = None) -> Iterator[Replayed]:
    """Replay from the checkpoint of step ``first`` (the earliest that can be used) to step ``last`` (the last one).

    Yields the checkpoint itself, then each step. Raises RecordError or CheckpointError when it cannot be done.
    """
    timeline = read_timeline(directory.path)
    recipe = directory.recipe([])
    end = max((s.step for s in timeline.steps.values() if s.weights), default=0) if last is None else last
    checkpoint, step = _start(directory.checkpoints(recipe.checkpoint.keep), timeline, first, end)
    if recipe.training.threads or timeline.threads:
        torch.set_num_threads(recipe.training.threads or timeline.threads)
    model = assembly.make_model(recipe, Tokenizer.load(directory.tokenizer))
    roles = assembly.make_roles(recipe, model)
    try:
        yield from _replayed(recipe, roles, timeline, checkpoint, step, end)
    finally:
        roles.close()


def _replayed(
    recipe: Recipe, roles: Roles, timeline: Timeline, checkpoint: Path, step: int, end: int
) -> Iterator[Replayed]:
    roles.load(checkpoint / "learner")
    logged = timeline.steps[step].weights if step in timeline.steps else timeline.begins.get(step, "")
    weights = digest(roles.weights())
    yield Replayed(step, logged or weights, weights)
    for number in range(step + 1, end + 1):
        found = timeline.steps[number]
        with torch_threads(found.threads):
            update(recipe, roles, _groups(found), found.progress)
        yield Replayed(number, found.weights, digest(roles.weights()))


def _start(store: CheckpointStore, timeline: Timeline, first: int | None, end: int) -> tuple[Path, int]:
    """The earliest whole checkpoint from which every step up to ``end`` is in the log."""
    missing = [n for n in range(1, end + 1) if n not in timeline.steps or not timeline.steps[n].whole]
    found = {load_state(path).step: path for path in store.whole()}
    if first is not None:
        found = {step: path for step, path in found.items() if step == first}
    usable = [step for step in found if step <= end and not any(n > step for n in missing)]
    if not found:
        raise CheckpointError(f"There is no checkpoint to begin the replay with{_of(first)}.")
    if not usable:
        raise RecordError(
            f"The log has no whole step {max(missing, default=end + 1)} any more, and no checkpoint after it is kept: "
            "raise checkpoint.event_log_mb, or checkpoint.keep, to replay so far back."
        )
    return found[min(usable)], min(usable)


def _of(step: int | None) -> str:
    return f" of step {step}" if step is not None else ""


def _groups(step: LoggedStep) -> list[Group]:
    groups = []
    for group in step.groups:
        members = tuple(decode(_parsed(read_at(end), end)) for end in group.ends if end is not None)
        if tuple(m.id for m in members) != group.members:
            raise RecordError(f"The log changed while step {step.step} was replayed; replay when the run has ended.")
        groups.append(Group(group.id, group.task, members))
    return groups


def _parsed(line: bytes, place: Place) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{place.path} is damaged at byte {place.offset}: {error}.") from error
    return record

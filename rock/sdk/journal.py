"""What happened in an episode, so that it can be brought about again, and whether it came about the same. Pure.

Invariants: an entry is made when the answer is here, never before, so the journal is the state the caller has seen;
answers are kept as hashes only, and compared as the JSON they came in, with sorted keys. ``info`` is not compared: it
is no part of the state, and may hold times. Calls beside the episode (``env.call``) are not in the journal.

A *checkpoint* is an entry from which the episode can be brought about again without what was before it: what is
replayed then is only what came since. The whole is kept all the same, for the day the snapshot is lost with its disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from rock.domain.errors import Diverged, RockError

_RESET = ("observation",)
_STEP = ("observation", "reward", "terminated", "truncated")


def digest(value: Mapping[str, Any], names: tuple[str, ...] = _STEP) -> str:
    """SHA-256 of the canonical JSON of what an agent sees of an answer."""
    return hashlib.sha256(_canonical([value[n] for n in names])).hexdigest()


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    name: str
    """Of the snapshot that holds the sandbox's files."""
    step: int
    """How many steps had been answered."""
    state: Any
    """What the environment needs beside the files."""


class Journal:
    def __init__(self) -> None:
        self.begin("", 0, {})

    def begin(self, task: str, seed: int, options: Mapping[str, Any]) -> None:
        """Another episode is asked for; the one before is forgotten."""
        self.task, self.seed = task, seed
        self.options: dict[str, Any] = orjson.loads(orjson.dumps(dict(options)))  # the caller may change its own
        self.actions: list[Any] = []
        self._digests: list[str] = []
        self.over = False
        self.checkpoint: Checkpoint | None = None
        self.failure: RockError | None = None
        """Why the episode is void; it is not brought back then."""

    def copy_of(self, other: Journal) -> None:
        """The same episode so far, to be brought about from its start."""
        self.begin(other.task, other.seed, other.options)
        self.actions, self._digests, self.over = list(other.actions), list(other._digests), other.over

    @property
    def begun(self) -> bool:
        return bool(self._digests)

    @property
    def worth_replaying(self) -> bool:
        """Whether somebody may go on from where it ends."""
        return self.begun and not self.over and self.failure is None

    @property
    def goes_on_from(self) -> str:
        """The snapshot that another sandbox should be made of; empty: none."""
        return self.checkpoint.name if self.checkpoint is not None and self.worth_replaying else ""

    def since(self, step: int) -> list[tuple[int, Any]]:
        """The numbers and actions of the steps after ``step``."""
        return list(enumerate(self.actions, 1))[step:]

    def was_reset(self, value: Mapping[str, Any]) -> None:
        self._digests = [digest(value, _RESET)]

    def stepped(self, action: Any, value: Mapping[str, Any]) -> None:
        self.actions.append(action if isinstance(action, str) else orjson.loads(orjson.dumps(action)))
        self._digests.append(digest(value))
        self.over = bool(value["terminated"] or value["truncated"])

    def compare(self, number: int, value: Mapping[str, Any]) -> None:
        """Entry ``number`` (0: the reset) was brought about again and gave ``value``. Raises Diverged."""
        found, expected = digest(value, _STEP if number else _RESET), self._digests[number]
        if found != expected:
            raise self.diverged(number, f"the answer is {found[:16]} where it was {expected[:16]}")

    def compare_state(self, checkpoint: Checkpoint, state: Any) -> None:
        """The environment was restored and says again what it needs. Raises Diverged."""
        if _canonical(state) != _canonical(checkpoint.state):
            raise self.diverged(checkpoint.step, "restored from its snapshot, checkpoint() returns another state")

    def diverged(self, number: int, how: str) -> Diverged:
        what = f"step {number} of {len(self.actions)}" if number else "the reset"
        return Diverged(
            f"Replaying task {self.task!r} with seed {self.seed} in another sandbox differs at {what}: {how}.",
            hint="The episode is void. If it happens again the environment is not deterministic: declare "
            'recovery = "none" in its env.toml.',
        )

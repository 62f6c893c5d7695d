"""What must hold whatever happens, watched from outside: by the environments, the clients and the books."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rock.domain.sandbox import SandboxState
from rock.node.fleet import Fleet
from rock.wire.models import LeaseView

_HELD = frozenset({SandboxState.LEASED, SandboxState.SUSPECT})


class Violation(AssertionError):
    """An invariant is broken."""


def scene(before: str, said: str) -> str:
    """What is seen next. Every observation hangs on all that was done before it."""
    return hashlib.sha1(f"{before}|{said}".encode(), usedforsecurity=False).hexdigest()[:10]


@dataclass(eq=False)
class Episode:
    number: int
    steps: int
    outcome: str = ""
    detail: str = ""
    epoch: int = 0
    """The highest under which an environment acted in it."""

    def end(self, outcome: str, detail: str = "") -> None:
        if self.outcome:
            raise Violation(f"episode {self.number} ended twice: {self.outcome}, then {outcome}")
        self.outcome, self.detail = outcome, detail

    def action(self, step: int) -> str:
        return f"a{self.number}.{step}"

    def scenes(self) -> list[str]:
        """What an undisturbed player sees."""
        seen = [scene("reset", f"{self.steps}/{self.number}")]
        for step in range(self.steps):
            seen.append(scene(seen[-1], self.action(step)))
        return seen


class Witness:
    def __init__(self, epoch_of: Callable[[Scribe], int]) -> None:
        self.epoch_of = epoch_of
        """To which the sandbox of an environment is bound."""
        self.episodes: list[Episode] = []
        self.epochs: dict[str, int] = {}
        """Of the leases, as this control plane has said."""
        self._bound: dict[tuple[str, int], str] = {}
        self.acts = 0
        self._accusations: list[str] = []

    def accuse(self, what: str) -> None:
        """For the environments: what they raise would be taken for a failure of the task."""
        self._accusations.append(what)

    def check(self) -> None:
        if self._accusations:
            raise Violation("; ".join(self._accusations))

    def begin(self, steps: int) -> Episode:
        episode = Episode(len(self.episodes), steps)
        self.episodes.append(episode)
        return episode

    def scribe(self) -> Scribe:
        """For the fake runtime: makes the environment of each sandbox."""
        return Scribe(self)

    # --- the books

    def control_starts(self) -> None:
        """What it could not write down in its last life it has forgotten: the epoch of a lease may fall, and none may
        be given twice."""
        self.epochs.clear()

    def look_at_leases(self, views: Iterable[LeaseView]) -> None:
        holders: dict[str, str] = {}
        for view in views:
            if view.epoch < self.epochs.get(view.id, 0):
                raise Violation(f"lease {view.id} fell from epoch {self.epochs[view.id]} to {view.epoch}")
            self.epochs[view.id] = view.epoch
            if view.recovering:
                continue
            if (other := holders.setdefault(view.sandbox_id, view.id)) != view.id:
                raise Violation(f"sandbox {view.sandbox_id} is in two leases, {other} and {view.id}")
            first = self._bound.setdefault((view.id, view.epoch), view.sandbox_id)
            if first != view.sandbox_id:
                raise Violation(f"epoch {view.epoch} of lease {view.id} was {first}'s and is {view.sandbox_id}'s")

    def look_at_nodes(self, fleets: Iterable[Fleet]) -> None:
        holders: dict[tuple[str, int], str] = {}
        for record in itertools.chain.from_iterable(list(fleet.records.values()) for fleet in fleets):
            if record.state in _HELD and record.grant is not None:
                key = (record.grant.lease_id, record.grant.epoch)
                if (other := holders.setdefault(key, record.id)) != record.id:
                    raise Violation(f"epoch {key[1]} of lease {key[0]} holds two sandboxes, {other} and {record.id}")

    def account(self) -> dict[str, int]:
        """Raises Violation unless every episode has ended."""
        open_ones = [episode.number for episode in self.episodes if not episode.outcome]
        if open_ones:
            raise Violation(f"episodes {open_ones} have not ended")
        outcomes: dict[str, int] = {}
        for episode in self.episodes:
            outcomes[episode.outcome] = outcomes.get(episode.outcome, 0) + 1
        return outcomes


class Scribe:
    """An environment that tells the witness of everything it does. The task is the number of the episode's steps, the
    seed the number of the episode."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._episode: Episode | None = None
        self._scene = ""
        self._count = 0
        self._late = 0

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        episode = self._witness.episodes[seed]
        if self._episode is not None and self._episode is not episode:
            self._witness.accuse(f"one sandbox serves episodes {self._episode.number} and {episode.number}")
        self._episode, self._count = episode, 0
        self._enter(episode)
        self._scene = scene("reset", f"{task}/{seed}")
        return self._scene, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        episode = self._episode
        assert episode is not None
        if action != (expected := episode.action(self._count)):
            self._witness.accuse(f"episode {episode.number}: {action} acts where {expected} comes next")
        self._enter(episode)
        self._count += 1
        self._witness.acts += 1
        self._scene = scene(self._scene, action)
        over = self._count >= episode.steps
        return self._scene, float(over), over, False, {}

    def _enter(self, episode: Episode) -> None:
        """Once another has taken over, it may end what was under way, and nothing more."""
        epoch = self._witness.epoch_of(self)
        episode.epoch = max(episode.epoch, epoch)
        self._late += epoch < episode.epoch
        if self._late > 1:
            self._witness.accuse(f"episode {episode.number}: a sandbox of an old epoch goes on acting")

    def call(self, method: str, args: dict[str, Any]) -> Any:
        raise LookupError(method)

    def close(self) -> None:
        pass

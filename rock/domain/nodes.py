"""What control makes of a node: its standing, and the only ways from one to the next. Pure; time is passed in.

Three things decide: whether it answers, what an operator said of it, whether it is ejected for slowness. The standing
is computed from them in one place (:meth:`NodeHealth.standing`) and stored nowhere.

Invariants: only *up* gets new leases; *dead* is said only after a silence during which control itself was awake; a
node that was *dead*, or whose connection was made anew, is nothing better than *suspect* until it has been told which
leases are still its own (:meth:`NodeHealth.rejoined`); what an operator said outlives all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NodeStanding(StrEnum):
    UP = "up"
    SUSPECT = "suspect"
    DEAD = "dead"
    EJECTED = "ejected"
    CORDONED = "cordoned"
    DRAINING = "draining"


MEANING: dict[NodeStanding, str] = {
    NodeStanding.UP: "Answers; gets new leases.",
    NodeStanding.SUSPECT: "Missed a heartbeat; gets no new leases until it answers again.",
    NodeStanding.DEAD: "Silent so long that its leases were moved; what it still holds when it returns is fenced.",
    NodeStanding.EJECTED: "Much slower than its peers; gets no new leases for a while, then is tried again.",
    NodeStanding.CORDONED: "An operator wants no new leases on it; those it has go on.",
    NodeStanding.DRAINING: "Cordoned, and its leases are being moved or waited for.",
}

_S = NodeStanding
TRANSITIONS: dict[NodeStanding, frozenset[NodeStanding]] = {
    _S.UP: frozenset({_S.SUSPECT, _S.EJECTED, _S.CORDONED, _S.DRAINING}),
    _S.SUSPECT: frozenset({_S.UP, _S.DEAD, _S.EJECTED, _S.CORDONED, _S.DRAINING}),
    # Never ejected: it returns with a clean record. Never suspect: it is dead until it has rejoined.
    _S.DEAD: frozenset({_S.UP, _S.CORDONED, _S.DRAINING}),
    _S.EJECTED: frozenset({_S.UP, _S.SUSPECT, _S.CORDONED, _S.DRAINING}),
    _S.CORDONED: frozenset({_S.UP, _S.SUSPECT, _S.EJECTED, _S.DRAINING}),
    _S.DRAINING: frozenset({_S.UP, _S.SUSPECT, _S.EJECTED, _S.CORDONED}),
}

WORDS = frozenset({NodeStanding.CORDONED, NodeStanding.DRAINING})
"""What an operator can say of a node; kept over restarts."""


@dataclass(frozen=True, slots=True)
class HeartbeatPolicy:
    """Together: a node that goes silent is *dead* within 5 s, and no single slow answer makes it so."""

    interval_s: float = 1.0
    dead_after_s: float = 3.8
    """Since its last answer. Just below four intervals, so that the fourth look, however punctual, is late enough."""
    dead_after_misses: int = 3


class NodeHealth:
    """The state of one node. It begins as one that answers."""

    def __init__(self, now: float, policy: HeartbeatPolicy | None = None) -> None:
        self._policy = policy or HeartbeatPolicy()
        self._seen_at = now
        self._misses = 0
        self._dead = False
        self._away = False
        self._ejected_until = float("-inf")
        self.word: NodeStanding | None = None
        """What an operator said: cordoned, draining, or nothing."""

    def answered(self, now: float) -> None:
        self._seen_at, self._misses = now, 0

    def missed(self, now: float, starved_s: float = 0.0) -> None:
        """A look went unanswered. ``starved_s``: for how much of it control itself did not run; that says nothing about
        the node."""
        self._seen_at = min(now, self._seen_at + starved_s)
        self._misses += 1
        silent_s = now - self._seen_at
        if self._misses >= self._policy.dead_after_misses and silent_s >= self._policy.dead_after_s:
            self._dead, self._ejected_until = True, float("-inf")

    def returned(self) -> None:
        """It answers on a new connection, or as a new process: it may hold what is no longer its own."""
        self._away = True

    def rejoined(self, now: float) -> None:
        """It was told which leases are its own."""
        self._dead = self._away = False
        self.answered(now)

    @property
    def must_rejoin(self) -> bool:
        return self._dead or self._away

    @property
    def dead(self) -> bool:
        return self._dead

    def silent_s(self, now: float) -> float:
        return now - self._seen_at

    def say(self, word: NodeStanding | None) -> None:
        if word is not None and word not in WORDS:
            raise ValueError(f"an operator cannot say {word!r} of a node")
        self.word = word

    def eject(self, until: float) -> None:
        if not self._dead:
            self._ejected_until = until

    def standing(self, now: float) -> NodeStanding:
        if self._dead:
            return NodeStanding.DEAD
        if self._away or self._misses:
            return NodeStanding.SUSPECT
        if self.word is not None:
            return self.word
        return NodeStanding.EJECTED if now < self._ejected_until else NodeStanding.UP

"""The life of a sandbox: its states, what each means, and the only transitions there are.

``requested → starting → ready → leased → released → gone``; ``failed`` can be reached from every living state and
leads to ``gone``. There is no way back from ``released`` or ``failed`` to ``ready``: sandboxes are single-use, so what
one episode left behind can never be met by the next.
"""

from __future__ import annotations

from enum import StrEnum


class SandboxState(StrEnum):
    REQUESTED = "requested"
    STARTING = "starting"
    READY = "ready"
    LEASED = "leased"
    SUSPECT = "suspect"
    RELEASED = "released"
    FAILED = "failed"
    GONE = "gone"


MEANING: dict[SandboxState, str] = {
    SandboxState.REQUESTED: "Wanted by a pool or a lease; nothing exists yet.",
    SandboxState.STARTING: "The runtime was told to start it; its guest has not answered yet.",
    SandboxState.READY: "Its guest answers and nobody has it; it waits in the warm pool.",
    SandboxState.LEASED: "Exactly one lease holds it.",
    SandboxState.SUSPECT: "Leased, but its guest missed a probe; either it answers again or it has failed.",
    SandboxState.RELEASED: "Its lease ended; it will be removed and never used again.",
    SandboxState.FAILED: "It died, or is treated as dead; its evidence is kept.",
    SandboxState.GONE: "Nothing of it is left on the machine.",
}

_S = SandboxState
TRANSITIONS: dict[SandboxState, frozenset[SandboxState]] = {
    _S.REQUESTED: frozenset({_S.STARTING, _S.FAILED, _S.GONE}),
    _S.STARTING: frozenset({_S.READY, _S.RELEASED, _S.FAILED}),
    _S.READY: frozenset({_S.LEASED, _S.RELEASED, _S.FAILED}),
    _S.LEASED: frozenset({_S.SUSPECT, _S.RELEASED, _S.FAILED}),
    _S.SUSPECT: frozenset({_S.LEASED, _S.RELEASED, _S.FAILED}),
    _S.RELEASED: frozenset({_S.GONE, _S.FAILED}),
    _S.FAILED: frozenset({_S.GONE}),
    _S.GONE: frozenset(),
}

LIVING = frozenset({_S.REQUESTED, _S.STARTING, _S.READY, _S.LEASED, _S.SUSPECT})


class IllegalTransition(ValueError):
    """A programming error: the transition is not in the table."""


def transition(current: SandboxState, to: SandboxState) -> SandboxState:
    """``to``, if the table has a way from ``current``; else :class:`IllegalTransition`."""
    if to not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(TRANSITIONS[current])) or "nothing"
        raise IllegalTransition(f"sandbox cannot go from {current} to {to}; from there it can go to: {allowed}")
    return to

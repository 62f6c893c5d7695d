"""What happens in a simulated run: plain actions with plain numbers, so that a failing run prints as a test.

``which`` picks from what there is at that moment, modulo its number; where there is nothing, nothing happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fault = Literal["kill", "oom", "remove", "freeze", "pause", "hang", "starve", "kill_env", "kill_env_oom", "slow"]


@dataclass(frozen=True)
class Play:
    """A client plays an episode to its end. It thinks ``think_s`` before every step."""

    steps: int
    think_s: float = 0.2


@dataclass(frozen=True)
class Cancel:
    """The caller of a running episode is cancelled."""

    which: int


@dataclass(frozen=True)
class Abandon:
    """The process of a running episode's client is killed: it says nothing any more, not even farewell."""

    which: int


@dataclass(frozen=True)
class Strike:
    """Something happens to one living sandbox."""

    fault: Fault
    which: int


@dataclass(frozen=True)
class Thaw:
    """Every sandbox that was silent answers again, also what it was asked meanwhile."""


@dataclass(frozen=True)
class Starts:
    """From now on the starts on a node take this long, or fail, or never answer."""

    which: int
    delay_s: float = 0.0
    fail_next: int = 0
    never_listens: bool = False


@dataclass(frozen=True)
class Cut:
    """A node's machine is cut off from control and clients for a while; its sandboxes run on."""

    which: int
    for_s: float


@dataclass(frozen=True)
class KillNode:
    """A node's process is killed and started again a while later; its sandboxes run on."""

    which: int
    for_s: float


@dataclass(frozen=True)
class KillControl:
    """The control plane is killed and started again a while later."""

    for_s: float


@dataclass(frozen=True)
class BreakDatabase:
    """The database refuses everything, or only what would change it, for a while."""

    for_s: float
    reads_too: bool = False


Action = Play | Cancel | Abandon | Strike | Thaw | Starts | Cut | KillNode | KillControl | BreakDatabase


@dataclass(frozen=True)
class At:
    """``action``, ``after_s`` seconds after the one before it."""

    after_s: float
    action: Action


@dataclass(frozen=True)
class Schedule:
    actions: tuple[At, ...]
    nodes: int = 2
    pool: int = 1
    seed: int = 0
    """Of everything that is left to chance: delays, ids, jitter."""

    def __str__(self) -> str:
        lines, now = [], 0.0
        for at in self.actions:
            now += at.after_s
            lines.append(f"  {now:7.3f} s  {at.action}")
        return f"{self.nodes} nodes, pools of {self.pool}, seed {self.seed}:\n" + "\n".join(lines)

"""Which node gets the next sandbox, by what was seen of the nodes last and what was placed on them since."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Mapping

from rock.control.members import Member
from rock.domain.clock import Clock
from rock.domain.errors import PlatformUnavailable
from rock.domain.nodes import NodeStanding
from rock.domain.outliers import OutlierBook
from rock.domain.placement import choose
from rock.wire.handle import NodeHandle
from rock.wire.models import SandboxView

Claim = Callable[[NodeHandle, float], Awaitable[SandboxView]]
"""Claim on a node, waiting for so many seconds at most."""


class Placer:
    """Asks nobody; what it places it counts at once, so that a burst of claims spreads."""

    def __init__(self, clock: Clock, rng: random.Random, outliers: OutlierBook) -> None:
        self._clock = clock
        self._rng = rng
        self._outliers = outliers

    def place(self, members: Mapping[str, Member], digest: str, avoid: Collection[str]) -> NodeHandle | None:
        now = self._clock.now()
        loads = []
        for name, member in members.items():
            standing = member.health.standing(now)
            takes = standing in (NodeStanding.UP, NodeStanding.EJECTED) and name not in avoid
            if takes and member.view is not None:
                on_trial = self._outliers.on_trial(name, now)
                full = on_trial and member.trial_leases >= self._outliers.policy.trial_leases
                loads.append(member.load(digest, last_resort=full or standing is NodeStanding.EJECTED))
        if len(loads) == 1:  # sick or not: its own refusal says most
            chosen = loads[0]
        elif (found := choose(loads, self._rng)) is not None:
            chosen = found
        else:
            return None
        member = members[chosen.name]
        member.placed[digest] += 1
        member.trial_leases += self._outliers.on_trial(chosen.name, now)
        return member.handle

    def nobody(self, members: Mapping[str, Member]) -> PlatformUnavailable:
        now = self._clock.now()
        each = [
            f"{name} is {member.health.standing(now)}" + (f": {member.detail}" if member.detail else "")
            for name, member in members.items()
        ]
        return PlatformUnavailable(
            f"no node takes new leases ({'; '.join(each) or 'none has joined'})",
            hint="`rock node list` shows the nodes, `rock node uncordon` lets one take leases again.",
        )

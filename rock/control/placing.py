"""Which node gets the next sandbox, by what was seen of the nodes last and what was placed on them since.

Invariants: a claim ends with a sandbox, with what a node says against it, or when its time is up; not because a node
broke off or died under it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress

from rock.control.members import Member
from rock.domain.clock import Clock
from rock.domain.errors import PlatformUnavailable
from rock.domain.nodes import NodeStanding
from rock.domain.outliers import OutlierBook
from rock.domain.placement import choose
from rock.wire.handle import NodeHandle
from rock.wire.models import SandboxSpec, SandboxView

log = logging.getLogger(__name__)

# A claim waits this long for a node that has just missed a heartbeat, or is just rejoining, when there is no other.
_SETTLE_S = 3.0
# All nodes broke a claim off: until one changes its standing, but no longer, before they are asked again.
_ASK_AGAIN_S = 0.5

Claim = Callable[[NodeHandle, float], Awaitable[SandboxView]]
"""Claim on a node, waiting for so many seconds at most."""


class Placer:
    """Chooses without asking anybody; what it places it counts at once, so that a burst of claims spreads.

    ``members`` is the book's own; ``look`` has a node looked at that was not yet.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        clock: Clock,
        rng: random.Random,
        outliers: OutlierBook,
        look: Callable[[Member], Awaitable[None]],
    ) -> None:
        self._members = members
        self._clock = clock
        self._rng = rng
        self._outliers = outliers
        self._look = look
        self.changed = asyncio.Event()
        """To be set when a node joined, left, or stands otherwise than before."""
        self._closing = False

    def close(self) -> None:
        """Try no other node from now on: none will take a claim any more."""
        self._closing = True
        self.changed.set()

    async def choose(self, spec: SandboxSpec, avoid: Collection[str]) -> NodeHandle:
        """The node for the next sandbox; ``avoid`` those that were tried in vain. Raises PlatformUnavailable.

        When every node has just missed a heartbeat it waits a little: that is soon decided one way or the other.
        """
        deadline = asyncio.get_running_loop().time() + _SETTLE_S
        while True:
            self.changed.clear()
            await self._first_looks()
            chosen = self._pick(spec.digest, avoid)
            if chosen is not None:
                return chosen
            if not any(m.standing is NodeStanding.SUSPECT for n, m in self._members.items() if n not in avoid):
                raise self._nobody()
            try:
                async with asyncio.timeout_at(deadline):
                    await self.changed.wait()
            except TimeoutError:
                raise self._nobody() from None

    async def place(self, spec: SandboxSpec, claim: Claim, wait_s: float) -> tuple[NodeHandle, SandboxView]:
        """Choose a node and claim there. One that breaks off or dies meanwhile is no reason to give up: the others are
        asked, and when all have failed they are asked again, until ``wait_s`` have passed.

        Raises what ``claim`` raises, and PlatformUnavailable when no node takes the claim.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        failed: set[str] = set()
        while True:
            try:
                node = await self.choose(spec, failed)
                left_s = max(0.0, deadline - loop.time())
                try:
                    return node, await _claim_on(self._members[node.name], claim, left_s)
                except PlatformUnavailable as error:
                    log.warning("node=%s broke off a claim, another is asked: %s", node.name, error)
                    failed.add(node.name)
                    if self._closing or failed >= self._members.keys():
                        raise
            except PlatformUnavailable:
                if self._closing or not failed or loop.time() >= deadline:
                    raise
                failed.clear()
                await self._something_changes(min(_ASK_AGAIN_S, deadline - loop.time()))

    async def _something_changes(self, within_s: float) -> None:
        self.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.changed.wait()

    async def _first_looks(self) -> None:
        unseen = [m for m in self._members.values() if m.view is None and not m.health.must_rejoin]
        if unseen:
            await asyncio.gather(*(self._look(member) for member in unseen))

    # --- by what is known

    def _pick(self, digest: str, avoid: Collection[str]) -> NodeHandle | None:
        now = self._clock.now()
        loads = []
        for name, member in self._members.items():
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
        member = self._members[chosen.name]
        member.placed[digest] += 1
        member.trial_leases += self._outliers.on_trial(chosen.name, now)
        return member.handle

    def _nobody(self) -> PlatformUnavailable:
        now = self._clock.now()
        each = [
            f"{name} is {member.health.standing(now)}" + (f": {member.detail}" if member.detail else "")
            for name, member in self._members.items()
        ]
        return PlatformUnavailable(
            f"no node takes new leases ({'; '.join(each) or 'none has joined'})",
            hint="`rock node list` shows the nodes, `rock node uncordon` lets one take leases again.",
        )


async def _claim_on(member: Member, claim: Claim, wait_s: float) -> SandboxView:
    """Not waiting for the answer of a node that has been given up: a machine that was cut off ends no connection."""
    claiming = asyncio.ensure_future(claim(member.handle, wait_s))
    gone = asyncio.ensure_future(member.gone.wait())
    try:
        await asyncio.wait({claiming, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not claiming.done():
            raise PlatformUnavailable(f"node {member.handle.name} was given up before it answered a claim")
        return claiming.result()
    finally:
        # What a claim that is cancelled here got all the same is released by the handle, or fenced on its return.
        claiming.cancel()
        gone.cancel()
        await asyncio.gather(claiming, gone, return_exceptions=True)

"""The periodic comparison of the book of leases with what the nodes hold, behind all their hints.

Invariants: a lease whose sandbox is gone is lost, whoever missed it at first; a sandbox that is leased to nobody is
ended; a lease that is granted, or finds another sandbox, while a node answers is never taken for a stray.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from rock.control.nodes import NodeBook
from rock.control.rebinding import HELD
from rock.domain.errors import RockError
from rock.domain.leases import Held, LeaseBook
from rock.wire.handle import NodeHandle
from rock.wire.models import SandboxView

log = logging.getLogger(__name__)


class Comparison:
    """``claims``: those under way, by lease; ``condemned``: whether a sandbox is being ended already; ``lost`` and
    ``event(kind, subject, detail, node, run_id)`` are told what was found."""

    def __init__(
        self,
        nodes: NodeBook,
        book: LeaseBook,
        claims: Mapping[str, int],
        condemned: Callable[[str], bool],
        *,
        lost: Callable[[Held, str], None],
        event: Callable[[str, str, str, str, str], None],
    ) -> None:
        self._nodes = nodes
        self._book = book
        self._claims = claims
        self._condemned = condemned
        self._lost = lost
        self._event = event

    async def run(self) -> None:
        for node in self._nodes:
            try:
                await self._compare(node)
            except RockError as error:  # one node that does not answer must not hide the others
                log.warning("node=%s could not be compared: %s", node.name, error)

    async def _compare(self, node: NodeHandle) -> None:
        epochs = {h.lease_id: h.epoch for h in self._book.held() if h.node == node.name and h.bound}
        views = await node.sandboxes()
        alive = {view.id: view for view in views}
        for held in self._book.held():
            if held.bound and held.node == node.name and epochs.get(held.lease_id) == held.epoch:
                view = alive.get(held.sandbox_id)
                if view is None or view.state not in HELD:
                    self._lost(held, "the sandbox is gone")
        await self._fence(node, views)

    async def _fence(self, node: NodeHandle, views: Sequence[SandboxView]) -> None:
        """End the sandboxes that are leased there to nobody: their lease has ended, or moved elsewhere.

        By name, and judged by what the book says after the node has answered, claims under way included: a lease that
        is granted meanwhile is never taken for a stray, as it could be if the node compared with a list of leases that
        was made before.
        """
        for view in views:
            if view.state not in HELD or self._book.of_sandbox(view.id) or view.lease_id in self._claims:
                continue
            if not self._condemned(view.id):
                log.warning("node=%s sandbox=%s is held by nobody; ending it", node.name, view.id)
                self._event("sandbox.fenced", view.id, f"lease {view.lease_id} is not on it", node.name, view.run_id)
                await node.release(view.id, reason="its lease ended or moved to another sandbox")

"""Routes of the nodes: the machines, how they stand, and what an operator wants of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from rock.control.control import Control
from rock.wire.models import NodeUpdate, NodeView

NodeName = Annotated[str, Path(max_length=255)]


def node_router(control: Control) -> APIRouter:
    router = APIRouter(tags=["nodes"])

    @router.get("/nodes", summary="The machines, how they stand, their load and their warm pools")
    async def nodes() -> list[NodeView]:
        return await control.node_views()

    @router.post("/nodes/{name}/cordon", summary="Give a node no new leases")
    async def cordon(name: NodeName, update: NodeUpdate) -> NodeView:
        """Those it has go on. Kept over restarts, until it is uncordoned."""
        return await control.nodes.cordon(name, update.reason)

    @router.post("/nodes/{name}/uncordon", summary="Let a node take leases again")
    async def uncordon(name: NodeName, update: NodeUpdate) -> NodeView:
        return await control.nodes.uncordon(name)

    @router.post("/nodes/{name}/drain", summary="Empty a node")
    async def drain(name: NodeName, update: NodeUpdate) -> NodeView:
        """Cordons it, empties its warm pools, moves the leases that recover to other nodes and waits for the others to
        end. Answers at once; `standing_detail` begins with `empty` when nothing is left, and the event `node.drained`
        says so."""
        return await control.nodes.drain(name, update.reason)

    return router

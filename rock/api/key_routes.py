"""Routes of the keys: make, list, revoke. For admins only."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request

from rock.control.control import Control
from rock.wire.models import KeyCreate, KeyView


def key_router(control: Control) -> APIRouter:
    router = APIRouter(prefix="/keys", tags=["keys"])

    @router.post("", status_code=201, summary="Make a key")
    async def create(request: Request, key: KeyCreate) -> KeyView:
        """The secret in the answer is shown this once; only its hash is stored. The first key must be an admin's,
        because from then on every request needs a key."""
        return await control.keys.create(key, owner_has_key=bool(request.app.state.key))

    @router.get("", summary="The keys, revoked ones too")
    async def keys() -> list[KeyView]:
        """The oldest first, without their secrets."""
        return control.keys.views()

    @router.delete("/{key_id}", status_code=204, summary="Revoke a key")
    async def revoke(request: Request, key_id: Annotated[str, Path(description="`key-…`", max_length=64)]) -> None:
        """It is refused from now on; leases taken with it go on until they end. The last way in as admin stays."""
        state = request.app.state
        await control.keys.revoke(key_id, owner_has_key=bool(state.key), reachable=state.reachable)

    return router

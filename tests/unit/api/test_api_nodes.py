"""Operators over the API: a node is cordoned, drained and taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Make = Callable[..., Any]


def test_a_cordoned_node_refuses_leases_and_says_why(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            (node,) = await s.get("/nodes")
            assert (node["standing"], bool(node["last_seen_at"]), bool(node["address"])) == ("up", True, True)
            name = node["name"]
            view = await s.post(f"/nodes/{name}/cordon", {"reason": "new disks"}, 200)
            assert (view["standing"], view["standing_detail"]) == ("cordoned", "new disks")
            refused = await s.http.post("/leases", json={"image": "plain"})
            assert refused.status_code == 503
            assert f"{name} is cordoned: new disks" in refused.json()["detail"]
            assert (await s.post(f"/nodes/{name}/uncordon", {}, 200))["standing"] == "up"
            await s.post("/leases", {"image": "plain"})

    asyncio.run(main())


def test_a_drained_node_is_empty_when_its_last_lease_has_ended(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            (node,) = await s.get("/nodes")
            lease = await s.post("/leases", {"image": "plain"})
            view = await s.post(f"/nodes/{node['name']}/drain", {}, 200)
            assert (view["standing"], view["standing_detail"]) == ("draining", "")
            await s.http.delete(f"/leases/{lease['id']}")

            async def empty() -> bool:
                (now,) = await s.get("/nodes")
                return bool(now["standing_detail"] == "empty")

            await s.until(empty)

    asyncio.run(main())


def test_an_unknown_node_is_not_found(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            answer = await s.http.post("/nodes/nowhere/drain", json={})
            assert (answer.status_code, answer.json()["type"]) == (404, "urn:rock:not-found")

    asyncio.run(main())

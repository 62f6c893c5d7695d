"""Leases over HTTP: quotas of keys, deadlines, a lease that ends with its time, asking twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Make = Callable[..., Any]
OWNER = {"Authorization": "Bearer owner"}


def test_a_key_holds_no_more_leases_than_it_may(served: Make) -> None:
    async def main() -> None:
        async with served(key="owner") as s:
            key = await s.post_with(OWNER, "/keys", {"name": "k", "max_leases": 2})
            mine = {"Authorization": f"Bearer {key['secret']}"}
            asked = [s.http.post("/leases", json={"image": "plain"}, headers=mine) for _ in range(5)]
            answers = await asyncio.gather(*asked)
            assert sorted(a.status_code for a in answers) == [201, 201, 429, 429, 429]
            refused = next(a for a in answers if a.status_code == 429)
            assert "it may hold 2" in refused.json()["detail"]
            assert refused.headers["retry-after"]
            await s.post_with(OWNER, "/leases", {"image": "plain"})  # others are not concerned
            lease = next(a.json()["id"] for a in answers if a.status_code == 201)
            assert (await s.http.delete(f"/leases/{lease}", headers=mine)).status_code == 204
            await s.post_with(mine, "/leases", {"image": "plain"})

    asyncio.run(main())


def test_a_lease_shorter_than_the_environments_deadlines_is_refused(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            view = s.catalog.view("toy").model_copy(update={"episode_s": 60.0, "scoring_s": 20.0, "cleanup_s": 5.0})
            s.catalog.view = lambda name: view
            refused = await s.http.post("/leases", json={"env": "toy", "needs_s": 84})
            assert refused.status_code == 422
            for number in ("84", "60", "20", "5", "85"):
                assert f"{number} s" in refused.text or f"={number}:" in refused.text
            assert await s.get("/leases") == []
            await s.post("/leases", {"env": "toy", "needs_s": 85})
            await s.post("/leases", {"env": "toy"})

    asyncio.run(main())


def test_a_lease_ends_after_the_time_it_asked_for_however_often_its_holder_beats(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            lease = await s.post("/leases", {"image": "plain", "needs_s": 0.5})

            async def over() -> Any:
                await s.http.post(f"/leases/{lease['id']}/heartbeat")
                return await s.get("/events", kind="lease.expired")

            (event,) = await s.until(over)
            assert "needs_s" in event["detail"]
            assert await s.get("/leases") == []

    asyncio.run(main())


def test_a_lease_asked_for_twice_with_one_word_is_one_lease(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            word = {"Idempotency-Key": "abc"}
            first, second = await asyncio.gather(
                *(s.http.post("/leases", json={"image": "plain"}, headers=word) for _ in range(2))
            )
            assert first.json() == second.json()
            assert first.json()["token"]
            assert len(await s.get("/leases")) == 1
            other = await s.http.post("/leases", json={"image": "plain", "ttl_s": 7}, headers=word)
            assert other.json()["type"] == "urn:rock:conflict"

    asyncio.run(main())

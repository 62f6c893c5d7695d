"""Leases, sandboxes, environments and events over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rock.domain.errors import StorageError
from rock.wire.guest_client import GuestClient

Make = Callable[..., Any]


def test_a_lease_of_an_environment_leads_to_its_guest(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            lease = await s.post("/leases", {"env": "toy", "run_id": "run-7", "labels": {"a": "b"}})
            assert lease["token"]
            assert (lease["env"], lease["image"], lease["epoch"]) == ("toy", "toy:1", 1)
            async with await GuestClient.connect_unix(lease["endpoint"]["socket_path"]) as guest:
                assert (await guest.call("env.reset", seq=0, task="3", seed=1, options={}, epoch=1))["info"]
            (listed,) = await s.get("/leases")
            assert listed == {**lease, "token": ""}
            assert (await s.http.post(f"/leases/{lease['id']}/heartbeat")).json() == listed
            (sandbox,) = await s.get("/sandboxes", state="leased", run_id="run-7")
            assert sandbox["id"] == lease["sandbox_id"]
            result = await s.post(f"/sandboxes/{sandbox['id']}/exec", {"argv": ["echo", "hi"]}, status=200)
            assert result["stdout"] == "hi\n"
            assert "lines" in await s.get(f"/sandboxes/{sandbox['id']}/logs", lines=5)
            for _ in range(2):
                assert (await s.http.delete(f"/leases/{lease['id']}")).status_code == 204
            expired = await s.http.post(f"/leases/{lease['id']}/heartbeat")
            assert (expired.status_code, expired.json()["type"]) == (410, "urn:rock:lease-expired")

            async def gone() -> bool:
                return bool((await s.get(f"/sandboxes/{sandbox['id']}"))["state"] == "gone")

            await s.until(gone)

    asyncio.run(main())


def test_the_first_lease_warms_the_environments_pool_and_a_new_build_drains_the_old(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            await s.post("/leases", {"env": "toy"})

            async def warm() -> bool:
                (node,) = await s.get("/nodes")
                return [p["ready"] for p in node["pools"] if p["image"] == s.catalog.spec_of_toy.image] == [2]

            await s.until(warm)
            s.catalog.spec_of_toy = s.catalog.spec_of_toy.model_copy(update={"image": "toy:2"})

            async def rebuilt() -> bool:
                lease = await s.post("/leases", {"env": "toy"})
                await s.http.delete(f"/leases/{lease['id']}")
                return bool(lease["image"] == "toy:2")

            await s.until(rebuilt)
            await s.until(warm)

            async def drained() -> bool:
                (node,) = await s.get("/nodes")
                return [p["ready"] for p in node["pools"] if p["image"] == "toy:1"] == [0]

            await s.until(drained)

    asyncio.run(main())


def test_pools_asked_for_are_warm_from_the_start(served: Make) -> None:
    async def main() -> None:
        async with served(pools={"toy": 3}) as s:

            async def warm() -> bool:
                return len(await s.get("/sandboxes", state="ready")) == 3

            await s.until(warm)

    asyncio.run(main())


def test_a_lease_without_heartbeats_expires_and_its_sandbox_goes(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            lease = await s.post("/leases", {"image": "plain", "ttl_s": 0.2})

            async def expired() -> Any:
                return await s.get("/events", kind="lease.expired")

            (event,) = await s.until(expired)
            assert event["subject"] == lease["id"]
            answer = await s.http.post(f"/leases/{lease['id']}/heartbeat")
            assert "no heartbeat within 0.2 s" in answer.json()["detail"]

            async def no_sandbox() -> bool:
                return not await s.get("/sandboxes")

            await s.until(no_sandbox)

    asyncio.run(main())


def test_a_sandbox_that_dies_ends_its_lease_and_leaves_evidence(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            lease = await s.post("/leases", {"image": "plain", "run_id": "run-1"})
            await s.runtime.kill(lease["sandbox_id"], oom=True)

            async def failed() -> Any:
                return await s.get("/sandboxes", state="failed")

            (sandbox,) = await s.until(failed)
            assert sandbox["id"] == lease["sandbox_id"]
            assert sandbox["evidence"]["cause"] == "oom"
            answer = await s.http.post(f"/leases/{lease['id']}/heartbeat")
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:rock:sandbox-lost")
            assert "oom" in answer.json()["detail"]
            events = {e["kind"]: e for e in await s.get("/events", run_id="run-1")}
            assert {"sandbox.failed", "lease.lost"} <= set(events)
            assert await s.get("/leases") == []

    asyncio.run(main())


def test_removing_a_sandbox_ends_its_lease(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            lease = await s.post("/leases", {"image": "plain"})
            for _ in range(2):
                assert (await s.http.delete(f"/sandboxes/{lease['sandbox_id']}")).status_code == 204
            assert await s.get("/leases") == []
            assert (await s.get("/sandboxes/sb-unknown", status=404))["type"] == "urn:rock:not-found"
            assert (await s.http.delete("/sandboxes/sb-unknown")).status_code == 404

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"env": "toy", "image": "x"}, 422, "invalid-request", "not both"),
        ({"env": "nope"}, 404, "not-found", "nope"),
        ({"image": "missing"}, 404, "image-not-found", "missing"),
        ({"image": "x", "ttl_s": -1}, 422, "invalid-request", "ttl_s"),
        ({"image": "x", "unknown": 1}, 422, "invalid-request", "unknown"),
        ({"image": "x", "spec": {"image": "y"}}, 422, "invalid-request", "not that of the spec"),
        ([], 422, "invalid-request", "body"),
    ],
)
def test_a_wrong_request_is_explained(served: Make, body: Any, status: int, kind: str, words: str) -> None:
    async def main() -> None:
        async with served() as s:
            s.runtime.faults.missing_images.add("missing")
            problem = await s.post("/leases", body, status=status)
            assert problem["type"] == f"urn:rock:{kind}"
            assert problem["fault"] == "caller"
            assert words in problem["detail"]

    asyncio.run(main())


def test_a_full_platform_says_so(served: Make) -> None:
    async def main() -> None:
        async with served(capacity=1) as s:
            await s.post("/leases", {"image": "plain"})
            problem = await s.post("/leases", {"image": "plain", "wait_s": 0.05}, status=503)
            assert problem["type"] == "urn:rock:capacity-exceeded"
            assert "1 of at most 1" in problem["detail"]

    asyncio.run(main())


def test_a_lease_that_cannot_be_stored_is_not_given(served: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with served() as s:

            async def full(_: Any) -> None:
                raise StorageError("the disk is full", hint="Free some space.")

            monkeypatch.setattr(s.platform.control.leases._records._store, "add_lease", full)
            problem = await s.post("/leases", {"image": "plain"}, status=507)
            assert problem["hint"] == "Free some space."

            async def nothing_held() -> bool:
                return not await s.get("/sandboxes") and not await s.get("/leases")

            await s.until(nothing_held)

    asyncio.run(main())


def test_a_restart_keeps_leases_whose_sandbox_lives_and_ends_the_others(served: Make) -> None:
    async def main() -> None:
        async with served(keep=True) as s:
            kept = await s.post("/leases", {"env": "toy", "ttl_s": 30})
            lost = await s.post("/leases", {"image": "plain", "ttl_s": 30})
        await s.runtime.remove(lost["sandbox_id"])
        async with served() as s:
            (lease,) = await s.get("/leases")
            assert lease["id"] == kept["id"]
            assert (await s.http.post(f"/leases/{kept['id']}/heartbeat")).status_code == 200
            endpoint = lease["endpoint"]
            hello = {"lease": kept["id"], "token": kept["token"], "epoch": 1}
            gateway = (endpoint["gateway_host"], endpoint["gateway_port"])
            async with await GuestClient.connect_tcp(*gateway, hello) as guest:
                assert (await guest.call("hello"))["env"] == "ready"
            assert [e["subject"] for e in await s.get("/events", kind="sandbox.adopted")] == [kept["sandbox_id"]]
            assert (await s.get(f"/sandboxes/{lost['sandbox_id']}"))["state"] == "gone"
            await s.http.delete(f"/leases/{kept['id']}")
        async with served() as s:
            assert await s.get("/leases") == []
            assert await s.get("/sandboxes") == []

    asyncio.run(main())


def test_environments_and_their_tasks(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            (env,) = await s.get("/envs")
            assert env == await s.get("/envs/toy")
            assert (await s.get("/envs/toy/tasks", split="train"))["tasks"] == ["a", "b"]
            for path in ("/envs/nope", "/envs/nope/tasks", "/envs/toy/tasks?split=x"):
                assert (await s.get(path, status=404))["type"] == "urn:rock:not-found"

    asyncio.run(main())


def test_health_says_what_is_wrong(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            health = await s.get("/health")
            assert (health["status"], health["runtime"], health["database"]) == ("ok", "fake", "SQLite")
            s.runtime.faults.list_error = "no daemon"

            async def degraded() -> Any:
                found = await s.get("/health")
                return found if found["status"] == "degraded" else None

            assert "no daemon" in (await s.until(degraded))["detail"]
            s.runtime.faults.list_error = ""

    asyncio.run(main())

"""The door itself: keys, hosts, problems for everything, the server on a real port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from rock.api.app import create_app
from rock.api.server import is_loopback, serve
from rock.domain.errors import Conflict, InvalidRequest

Make = Callable[..., Any]


def test_a_key_is_asked_for_when_one_is_set(served: Make) -> None:
    async def main() -> None:
        async with served(key="s3cret") as s:
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Basic s3cret"},
                {"Authorization": "x"},
            ):
                response = await s.http.get("/health", headers=headers)
                assert (response.status_code, response.json()["type"]) == (401, "urn:rock:unauthorized")
                assert "s3cret" not in response.text
            right = await s.http.get("/health", headers={"Authorization": "Bearer s3cret", "Host": "elsewhere.example"})
            assert right.status_code == 200

    asyncio.run(main())


def test_without_a_key_only_the_loopback_is_served(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            for host, status in [("evil.example", 401), ("localhost:7625", 200), ("[::1]:1", 200), ("127.0.0.1", 200)]:
                assert (await s.http.get("/health", headers={"Host": host})).status_code == status, host

    asyncio.run(main())


def test_every_error_is_a_problem_document(served: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with served() as s:

            async def bug() -> None:
                raise ZeroDivisionError("oops")

            monkeypatch.setattr(s.platform.control, "health", bug)
            cases = [
                ("GET", "/nowhere", 404),
                ("PUT", "/leases", 409),
                ("GET", "/events?limit=0", 422),
                ("GET", "/sandboxes?state=flying", 422),
                ("GET", "/health", 500),
            ]
            for method, path, status in cases:
                response = await s.http.request(method, path)
                assert response.status_code == status, path
                assert response.headers["content-type"] == "application/problem+json"
                assert response.json()["detail"]
                assert "Traceback" not in response.text
            malformed = await s.http.post("/leases", content=b"{", headers={"Content-Type": "application/json"})
            assert malformed.json()["type"] == "urn:rock:invalid-request"

    asyncio.run(main())


def test_requests_carry_an_id(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            given = await s.http.get("/health", headers={"X-Request-Id": "abc-1"})
            assert given.headers["x-request-id"] == "abc-1"
            made = await s.http.get("/health", headers={"X-Request-Id": "bad id\t"})
            assert made.headers["x-request-id"] not in {"", "bad id\t"}

    asyncio.run(main())


def test_prometheus_and_openapi(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            await s.post("/leases", {"image": "plain"})
            text = (await s.http.get("http://127.0.0.1/metrics")).text
            assert 'rock_sandboxes{node="local",state="leased"} 1.0' in text
            assert "rock_leases 1.0" in text
            assert 'rock_claims_total{node="local"} 1.0' in text
            document = (await s.http.get("http://127.0.0.1/openapi.json")).json()
            operations = [op for path in document["paths"].values() for op in path.values()]
            assert len(operations) >= 27
            assert all(op["summary"] for op in operations)

    asyncio.run(main())


def test_it_serves_until_asked_to_stop(served: Make) -> None:
    async def main() -> None:
        async with served(capacity=1) as s:
            ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(
                serve(create_app(s.platform.control, key=""), port=0, on_ready=ready.set_result)
            )
            async with httpx.AsyncClient(base_url=await ready) as http:
                await http.post("/v1/leases", json={"image": "plain"})
                waiting = asyncio.create_task(http.post("/v1/leases", json={"image": "plain", "wait_s": 60}))
                await asyncio.sleep(0.1)
                assert (await http.post("/v1/shutdown")).status_code == 202
                # Who waits for a sandbox hears of the end instead of hanging.
                assert (await waiting).json()["type"] == "urn:rock:platform-unavailable"
                await asyncio.wait_for(serving, 10)

    asyncio.run(main())


def test_sigterm_ends_the_serving_in_order(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(
                serve(create_app(s.platform.control, key=""), port=0, on_ready=ready.set_result)
            )
            await ready
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(serving, 10)

    asyncio.run(main())


def test_a_port_in_use_and_an_open_bind_without_a_key_are_refused(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            app = create_app(s.platform.control, key="")
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                with pytest.raises(Conflict, match="is in use") as caught:
                    await serve(app, port=taken.getsockname()[1])
                assert "--port" in caught.value.hint
            with pytest.raises(InvalidRequest, match="without a key") as refused:
                await serve(app, host="0.0.0.0", port=0)
            assert "ROCK_KEY" in refused.value.hint
            with pytest.raises(InvalidRequest, match="cannot listen"):
                await serve(create_app(s.platform.control, key="k"), host="203.0.113.7", port=0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("x.example", False),
    ],
)
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback

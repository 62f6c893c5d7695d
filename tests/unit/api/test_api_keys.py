"""Keys: what each scope may do, limits, secrets that are shown once, and a door that is never locked for good."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from rock.api.app import create_app
from rock.api.rules import RULES, VERSION
from rock.domain.errors import InvalidRequest

Make = Callable[..., Any]
OWNER = {"Authorization": "Bearer owner"}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def made(http: httpx.AsyncClient, headers: dict[str, str] | None = None, **key: Any) -> dict[str, Any]:
    response = await http.post("/keys", json={"name": "k", **key}, headers=headers)
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    return found


def test_each_scope_may_do_what_it_says_and_is_told_what_it_lacks(served: Make) -> None:
    async def main() -> None:
        async with served(key="owner") as s:
            secrets = {scope: (await made(s.http, OWNER, scope=scope))["secret"] for scope in ("read", "run", "admin")}
            tries = [
                ("GET", "/nodes", None, "read"),
                ("GET", "http://127.0.0.1/metrics", None, "read"),
                ("POST", "/leases", {"image": "plain"}, "run"),
                ("POST", "/runs", {"name": "n", "recipe": {}}, "run"),
                ("GET", "/keys", None, "admin"),
                ("POST", "/keys", {"name": "x"}, "admin"),
                ("POST", "/sandboxes/sb-none/restart", {}, "admin"),
                ("DELETE", "/keys/key-none", None, "admin"),
            ]
            rank = ["read", "run", "admin"]
            for method, path, body, needed in tries:
                for scope, secret in secrets.items():
                    response = await s.http.request(method, path, json=body, headers=bearer(secret))
                    if rank.index(scope) >= rank.index(needed):
                        assert response.status_code not in (401, 403), (path, scope)
                    else:
                        assert response.status_code == 403, (path, scope)
                        problem = response.json()
                        assert problem["type"] == "urn:rock:forbidden"
                        assert f"needs '{needed}'" in problem["detail"]
                        assert secret not in response.text

    asyncio.run(main())


def test_every_route_is_in_the_table_of_rules(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            paths = create_app(s.platform.control, key="").openapi()["paths"]
            found = {(method.upper(), path.removeprefix(VERSION)) for path in paths for method in paths[path]}
            assert found - set(RULES) == set()

    asyncio.run(main())


def test_the_first_key_closes_the_door_and_must_be_an_admins(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            refused = await s.http.post("/keys", json={"name": "k", "scope": "run"})
            assert refused.status_code == 409
            assert "first key" in refused.json()["detail"]
            admin = await made(s.http, scope="admin")
            assert (await s.http.get("/health")).status_code == 401
            right = bearer(admin["secret"])
            assert (await s.http.get("/health", headers=right)).status_code == 200
            other = await made(s.http, right, scope="run")
            last = await s.http.delete(f"/keys/{admin['id']}", headers=right)
            assert last.status_code == 409
            assert "only key of scope admin" in last.json()["detail"]
            for _ in range(2):
                assert (await s.http.delete(f"/keys/{other['id']}", headers=right)).status_code == 204
            assert (await s.http.get("/health", headers=bearer(other["secret"]))).status_code == 401
            # The last key of all opens the door again, for this machine only.
            assert (await s.http.delete(f"/keys/{admin['id']}", headers=right)).status_code == 204
            assert (await s.http.get("/health")).status_code == 200
            assert (await s.http.get("/health", headers={"Host": "evil.example"})).status_code == 401

    asyncio.run(main())


def test_secrets_are_shown_once_and_survive_a_restart_as_hashes(served: Make, short_home: Any) -> None:
    async def main() -> None:
        async with served() as s:
            admin = await made(s.http, scope="admin", max_leases=3, max_requests=4)
            secret = admin["secret"]
            (listed,) = (await s.http.get("/keys", headers=bearer(secret))).json()
            assert listed["secret"] == ""
            assert (listed["max_leases"], listed["max_requests"]) == (3, 4)
            assert listed["last_used_at"] is not None
        text = b"".join(path.read_bytes() for path in short_home.glob("rock.db*"))
        assert secret.encode() not in text
        async with served() as s:
            assert (await s.http.get("/health")).status_code == 401
            (again,) = (await s.http.get("/keys", headers=bearer(secret))).json()
            assert again["last_used_at"] >= listed["last_used_at"]
            assert (await s.http.delete(f"/keys/{admin['id']}", headers=bearer(secret))).status_code == 204
        stored = sqlite3.connect(short_home / "rock.db").execute("SELECT revoked_at, last_used_at FROM keys").fetchone()
        assert all(stored)
        async with served() as s:
            assert (await s.http.get("/health")).status_code == 200

    asyncio.run(main())


def test_a_key_does_not_become_the_owners_by_being_in_the_environment_of_the_next_start(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            admin = await made(s.http, scope="admin")
            reader = await made(s.http, bearer(admin["secret"]), scope="read")
        async with served(key=reader["secret"]) as s:
            mine = bearer(reader["secret"])
            assert (await s.http.get("/health", headers=mine)).status_code == 200
            assert (await s.http.get("/keys", headers=mine)).status_code == 403
            assert (await s.http.get("/keys", headers=bearer(admin["secret"]))).status_code == 200

    asyncio.run(main())


def test_wrong_secrets_of_every_shape_are_refused(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            admin = await made(s.http, scope="admin")
            secret = admin["secret"]
            for wrong in ("", "rk", "rk__", secret[:-1], secret + "x", secret.replace("rk_", "rk_0"), "é"):
                headers = {b"Authorization": b"Bearer " + wrong.encode()}
                assert (await s.http.get("/health", headers=headers)).status_code == 401, wrong

    asyncio.run(main())


def test_a_key_has_only_so_many_requests_under_way(served: Make) -> None:
    async def main() -> None:
        async with served(key="owner", capacity=1) as s:
            key = await made(s.http, OWNER, max_requests=1)
            mine = bearer(key["secret"])
            await s.post_with(OWNER, "/leases", {"image": "plain"})
            waiting = asyncio.create_task(s.http.post("/leases", json={"image": "plain", "wait_s": 0.5}, headers=mine))
            await asyncio.wait({waiting}, timeout=0.1)  # it has begun
            response = await s.http.get("/health", headers=mine)
            assert response.status_code == 429
            assert response.json()["type"] == "urn:rock:quota-exceeded"
            assert int(response.headers["retry-after"]) >= 1
            assert (await s.http.get("/health", headers=OWNER)).status_code == 200
            assert (await waiting).status_code == 503
            assert (await s.http.get("/health", headers=mine)).status_code == 200

    asyncio.run(main())


def test_a_public_bind_needs_a_key_and_keeps_one(served: Make) -> None:
    from rock.api.server import serve

    async def main() -> None:
        async with served() as s:
            app = create_app(s.platform.control, key="")
            with pytest.raises(InvalidRequest, match="without a key"):
                await serve(app, host="0.0.0.0", port=0)
            admin = await made(s.http, scope="admin")
            ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(serve(app, host="0.0.0.0", port=0, on_ready=ready.set_result))
            url = (await ready).replace("0.0.0.0", "127.0.0.1")
            async with httpx.AsyncClient(base_url=f"{url}/v1", headers=bearer(admin["secret"])) as http:
                assert (await http.delete(f"/keys/{admin['id']}")).status_code == 409
                assert (await http.post("/shutdown")).status_code == 202
            await serving

    asyncio.run(main())

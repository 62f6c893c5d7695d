"""Sandboxes that reach the hosts of their list and nothing else; the one host here is a server on loopback."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rock.wire.models import SandboxSpec, SandboxStats

# 127.0.0.2, because what is on 127.0.0.1 programs take to be the sandbox's own.
_HOST = "127.0.0.2"
_FETCH = """
import http.client, os, sys, urllib.error, urllib.request
where, other = sys.argv[1:]
print(urllib.request.urlopen(f"http://{where}/", timeout=20).read().decode())
proxy = os.environ["https_proxy"].removeprefix("http://")
tunnel = http.client.HTTPConnection(proxy, timeout=20)
tunnel.set_tunnel(where)
tunnel.request("GET", "/")
print(tunnel.getresponse().read().decode())
for bad in (other, "nowhere.invalid"):
    try:
        urllib.request.urlopen(f"http://{bad}/", timeout=20)
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode().split(": ", 1)[1].split(".")[0])
print(*(line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]))
"""


@pytest.fixture
def site() -> Iterator[int]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((_HOST, 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


async def _reaches_its_list_only(stage: Any, image: str, port: int) -> None:
    async with stage.platform() as (_, http_):
        lease = await stage.lease(http_, SandboxSpec(image=image, egress=(f"{_HOST}:{port}",)))
        argv = ["python3", "-c", _FETCH, f"{_HOST}:{port}", f"{_HOST}:{port + 1 if port < 65535 else 1}"]
        path = f"/sandboxes/{lease.sandbox_id}"
        done = (await http_.post(f"{path}/exec", json={"argv": argv, "timeout_s": 60})).json()
        first, second, wrong_port, unknown, interfaces = done["stdout"].splitlines()
        assert (first, second) == ("hello", "hello"), done
        assert wrong_port.startswith("403 port ")
        assert unknown.startswith("403 it is not in the list")
        assert interfaces == "lo", "it still has no network of its own"
        stats = SandboxStats.model_validate((await http_.get(f"{path}/stats")).json())
        assert stats.egress_refused == 2
        assert stats.egress_bytes > 10
        events = (await http_.get("/events", params={"kind": "sandbox.egress_refused"})).json()
        assert {event["subject"] for event in events} == {lease.sandbox_id}
        assert len(events) == 2
        view = (await http_.get(path)).json()
        assert view["spec"]["egress"] == [f"{_HOST}:{port}"]


@pytest.mark.docker
def test_a_container_reaches_the_hosts_of_its_list_and_no_others(docker_base: str, on_docker: Any, site: int) -> None:
    asyncio.run(_reaches_its_list_only(on_docker, docker_base, site))


@pytest.mark.bwrap
def test_a_sandbox_without_an_engine_does_so_too(on_bubblewrap: Any, site: int) -> None:
    asyncio.run(_reaches_its_list_only(on_bubblewrap, "host", site))

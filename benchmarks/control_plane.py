"""``python -m benchmarks.control_plane [--quick]``: the control plane under 1,000 sandboxes that come, go and die.

Three processes: 20 nodes on the fake runtime (real guests' protocol on real sockets, no containers), the control plane
with its API and SQLite, and this one, which is 1,000 clients over real HTTP. Every client holds a lease, beats three
times in its time-to-live, and gives it back for another now and then; 1 % of the leased sandboxes die every minute, and
their leases are bound to others. A dashboard's questions are asked meanwhile. Prints one JSON object as its last line:

- ``api_p50_ms``, ``api_p99_ms``: claims, heartbeats and releases together; ``claim_p50_ms``, ``claim_p99_ms``;
  ``list_p99_ms``: the list of all sandboxes, 1,000 views in one answer;
- ``rebind_p50_ms``, ``rebind_p99_ms``: from the death of a sandbox to its lease being bound to another;
- ``reconcile_p99_ms``: a full comparison of all leases with all nodes; ``loop_lag_p99_ms``: how late the control
  plane's loop wakes a task;
- ``cpu_percent`` (of one core) and ``rss_mib`` of the control plane's process; ``requests_per_s``, ``errors``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import psutil

from benchmarks._measuring import home, machine, p50_ms, p99_ms

FLEET = 1000
NODES = 20
TTL_S = 30.0
_READY_PER_NODE = 3
_FILLING = 16
"""Claims at once while the fleet fills: how it is filled is not measured."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.control_plane", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="30 s of churn instead of 180")
    args = parser.parse_args(argv)
    print(json.dumps(run(30.0 if args.quick else 180.0)))
    return 0


def run(for_s: float) -> dict[str, Any]:
    settings = {
        "nodes": NODES,
        "capacity": 2 * FLEET // NODES,
        "pool": _READY_PER_NODE,
        "failures_per_min": 0.01,
    }
    with home() as folder, process("nodes", folder, settings) as fleet, process("control", folder, settings) as plane:
        load = Load(plane.ready["url"])
        found = asyncio.run(load.run(plane.pid, for_s))
        late, killed = plane.end(), fleet.end()["killed"]
    return found | rebinding(killed, load.rebound) | late | machine()


def rebinding(killed: list[tuple[str, float]], rebound: dict[str, float]) -> dict[str, Any]:
    took = [rebound[sandbox_id] - at for sandbox_id, at in killed if sandbox_id in rebound]
    return {"killed": len(killed), "rebound": len(took)} | (
        {"rebind_p50_ms": p50_ms(took), "rebind_p99_ms": p99_ms(took)} if took else {}
    )


class Process:
    def __init__(self, role: str, folder: Path, settings: dict[str, Any]) -> None:
        argv = [sys.executable, "-m", "benchmarks._fleet", role, str(folder)]
        self._popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._popen.pid
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(settings) + "\n")
        self._popen.stdin.flush()
        self.ready = self._line()

    def _line(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended with code {self._popen.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> dict[str, Any]:
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        return self._line()

    def stop(self) -> None:
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        try:
            self._popen.wait(30)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


@contextlib.contextmanager
def process(role: str, folder: Path, settings: dict[str, Any]) -> Iterator[Process]:
    started = Process(role, folder, settings)
    try:
        yield started
    finally:
        started.stop()


class Http:
    """One keep-alive connection; no more than is needed, so that the measuring costs less than the measured."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        reader, writer = self._streams
        content = b"" if body is None else orjson.dumps(body)
        head = f"{method} /v1/{path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        header = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, found, rest = header.partition(b"content-length:")
        length = int(rest.partition(b"\r\n")[0]) if found else 0
        return int(header[9:12]), await reader.readexactly(length) if length else b""

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


class Load:
    """The clients, and what they saw."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._rng = random.Random(0)
        self._seconds: dict[str, list[float]] = {"claim": [], "beat": [], "release": [], "list": [], "nodes": []}
        self._errors: Counter[int] = Counter()
        self._measuring = False
        self._filling = asyncio.Semaphore(_FILLING)
        self.rebound: dict[str, float] = {}
        """When the lease of a lost sandbox was bound to another."""

    async def run(self, pid: int, for_s: float) -> dict[str, Any]:
        ready: asyncio.Queue[None] = asyncio.Queue()
        clients = [asyncio.create_task(self._client(ready)) for _ in range(FLEET)]
        others = [asyncio.create_task(self._dashboard()), asyncio.create_task(self._events())]
        for _ in range(FLEET):
            await self._one_of(ready.get(), clients)
        plane = psutil.Process(pid)
        before, began, self._measuring = sum(plane.cpu_times()[:2]), time.perf_counter(), True
        await asyncio.sleep(for_s)
        took, self._measuring = time.perf_counter() - began, False
        cpu_s, rss = sum(plane.cpu_times()[:2]) - before, plane.memory_info().rss
        await asyncio.sleep(2.0)  # what died last is bound to another
        for task in (*clients, *others):
            task.cancel()
        await asyncio.gather(*clients, *others, return_exceptions=True)
        quick = [*self._seconds["claim"], *self._seconds["beat"], *self._seconds["release"]]
        return {
            "api_p50_ms": p50_ms(quick),
            "api_p99_ms": p99_ms(quick),
            "claim_p50_ms": p50_ms(self._seconds["claim"]),
            "claim_p99_ms": p99_ms(self._seconds["claim"]),
            "list_p99_ms": p99_ms(self._seconds["list"]),
            "requests_per_s": round(sum(map(len, self._seconds.values())) / took, 1),
            "errors": sum(self._errors.values()),
            "cpu_percent": round(100 * cpu_s / took, 1),
            "rss_mib": round(rss / (1 << 20), 1),
        }

    @staticmethod
    async def _one_of(waiting: Any, clients: list[asyncio.Task[None]]) -> None:
        """The fleet fills up; a client that fails says why instead of leaving everybody waiting."""
        asked = asyncio.ensure_future(waiting)
        await asyncio.wait({asked, *clients}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            asked.cancel()
            for client in clients:
                if client.done():
                    client.result()

    async def _timed(self, kind: str, http: Http, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        began = time.perf_counter()
        status, content = await http.ask(method, path, body)
        if self._measuring:
            self._seconds[kind].append(time.perf_counter() - began)
            if status >= 400:
                self._errors[status] += 1
        return orjson.loads(content) if content and status < 400 else None

    async def _claim(self, http: Http) -> Any:
        wanted = {"env": "toy", "ttl_s": TTL_S, "wait_s": 60}
        while True:
            lease = await self._timed("claim", http, "POST", "leases", wanted)
            if lease is not None:
                return lease
            await asyncio.sleep(1.0)

    async def _client(self, ready: asyncio.Queue[None]) -> None:
        """Holds a lease for some 50 s, then another."""
        http = Http(self._url)
        try:
            async with self._filling:
                lease = await self._claim(http)
            ready.put_nowait(None)
            while True:
                for _ in range(max(1, round(self._rng.expovariate(0.2)))):
                    await asyncio.sleep(TTL_S / 3 * self._rng.uniform(0.8, 1.0))
                    await self._timed("beat", http, "POST", f"leases/{lease['id']}/heartbeat")
                await self._timed("release", http, "DELETE", f"leases/{lease['id']}")
                lease = await self._claim(http)
        finally:
            http.close()

    async def _dashboard(self) -> None:
        http = Http(self._url)
        while True:
            await self._timed("nodes", http, "GET", "nodes")
            await self._timed("list", http, "GET", "sandboxes")
            await asyncio.sleep(5.0)

    async def _events(self) -> None:
        """Follows the platform's events, as its dashboard does."""
        http, after = Http(self._url), 0
        lost: dict[str, str] = {}
        while True:
            _, content = await http.ask("GET", f"events?after={after}&limit=1000")
            for event in orjson.loads(content):
                after = max(after, event["id"])
                if event["kind"] == "lease.recovering":
                    lost[event["subject"]] = event["detail"].split()[1].rstrip(":")
                elif event["kind"] == "lease.rebound" and (sandbox_id := lost.pop(event["subject"], "")):
                    self.rebound[sandbox_id] = _seconds(event["at"])
            await asyncio.sleep(1.0)


def _seconds(at: str) -> float:

    return datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m benchmarks.sandbox_latency [--quick]``: what a sandbox costs, against the bare things it is made of.

Starts a platform of its own on Docker, leases hardened containers through the public SDK, and prints one JSON object as
its last line. Compared with each other are only numbers of the same run. All are wall time, in milliseconds:

- ``noop_step_p50_ms``: a step of an environment that does nothing, in one container, while nothing else is asked;
- ``noop_step_p99_ms``: the same in 32 containers at once, each stepping again 50 ms after its last answer, as under an
  agent that thinks; ``saturated_step_p99_ms``: without any pause, so that all wait for the cores;
- ``steps_per_s``: 8 containers, no pause;
- ``bare_socket_p50_ms``: an equal line echoed over a unix socket between two processes, with nothing else in between;
- ``shell_p50_ms``: a command in a persistent shell, its exit code checked; ``docker_exec_p50_ms``: the same command
  in the same container through the engine's API; ``exec_ratio``: how often the one fits into the other;
- ``warm_claim_p50_ms``: from asking for an environment to a connection to its guest, with a warm pool;
- ``cold_start_p50_ms``: from asking for a sandbox of a kind never seen to a connection to its guest;
  ``engine_start_p50_ms``: create and start of a container of the same image with the same walls, until its Python has
  printed a word (``engine_sh_start_p50_ms``: until ``sh`` has); ``cold_start_ratio``: the first over the second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.api import APIClient

from benchmarks._containers import COMMAND, checked, docker_exec, docker_is_here, nothing_starts, on_docker, took, until
from benchmarks._measuring import machine, p50_ms, p99_ms, percentile
from rock.runtimes.docker import BASE_TAG, host_config
from rock.runtimes.docker_daemon import new_client
from rock.runtimes.shared import UNPRIVILEGED
from rock.sdk import EnvSession, Rock, SandboxSpec

FLEET = 32
CROWD = 8
THINK_S = 0.05
_PYTHON = ["python3", "-c", "import time; print('up', flush=True); time.sleep(60)"]
_SH = ["sh", "-c", "echo up; exec sleep 60"]
_ECHO = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
print("ready", flush=True)
peer, _ = server.accept()
while data := peer.recv(65536):
    peer.sendall(data)
"""
_LINE = b'{"id":7,"op":"env.step","epoch":1,"seq":3,"action":"go to fridge 1"}\n'


@dataclass(frozen=True)
class Scale:
    steps: int
    fleet_steps: int
    commands: int
    starts: int


_FULL = Scale(steps=3000, fleet_steps=100, commands=300, starts=15)
_QUICK = Scale(steps=600, fleet_steps=30, commands=60, starts=5)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.sandbox_latency", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer of everything: half a minute")
    args = parser.parse_args(argv)
    if not docker_is_here():
        return 1
    print(json.dumps(run(_QUICK if args.quick else _FULL)))
    return 0


def run(scale: Scale) -> dict[str, Any]:
    with on_docker(FLEET + CROWD, {"noop": FLEET}) as url:
        return asyncio.run(measure(url, scale))


async def measure(url: str, scale: Scale) -> dict[str, Any]:
    found: dict[str, Any] = {"bare_socket_p50_ms": p50_ms(await asyncio.to_thread(echo, scale.steps))}
    async with Rock(url) as rock:
        await fleet_is_warm(rock)
        async with AsyncExitStack() as stack:
            claims: list[float] = []
            sessions: list[EnvSession] = []
            for _ in range(FLEET):
                began = time.perf_counter()
                sessions.append(await stack.enter_async_context(rock.env("noop", task="nothing")))
                claims.append(time.perf_counter() - began)
            found["warm_claim_p50_ms"] = p50_ms(claims)
            await asyncio.gather(*(session.reset() for session in sessions))
            await nothing_starts(rock)
            found |= await measure_steps(sessions, scale)
        await nothing_starts(rock)
        found |= await measure_commands(rock, scale.commands)
        found |= await measure_starts(rock, scale.starts)
    return found | machine()


async def fleet_is_warm(rock: Rock) -> None:
    async def warm() -> bool:
        return any(pool.ready >= FLEET for node in await rock.nodes() for pool in node.pools)

    await until(warm, "the pool is not warm")


# --- steps ------------------------------------------------------------------------------------------------------------


async def measure_steps(sessions: list[EnvSession], scale: Scale) -> dict[str, Any]:
    await stepping(sessions[0], scale.steps // 10)
    alone = await stepping(sessions[0], scale.steps)
    thinking = await together(sessions, scale.fleet_steps, THINK_S)
    saturated = await together(sessions, scale.fleet_steps, 0.0)
    began = time.perf_counter()
    await together(sessions[:CROWD], scale.steps // CROWD, 0.0)
    return {
        "noop_step_p50_ms": p50_ms(alone),
        "noop_step_p99_ms": p99_ms(thinking),
        "fleet_step_p50_ms": p50_ms(thinking),
        "saturated_step_p99_ms": p99_ms(saturated),
        "steps_per_s": round(scale.steps // CROWD * CROWD / (time.perf_counter() - began)),
    }


async def together(sessions: list[EnvSession], steps: int, think_s: float) -> list[float]:
    found = await asyncio.gather(
        *(stepping(session, steps, think_s, number / len(sessions)) for number, session in enumerate(sessions))
    )
    return [one for many in found for one in many]


async def stepping(session: EnvSession, steps: int, think_s: float = 0.0, phase: float = 0.0) -> list[float]:
    """Seconds of each step. ``phase``: which part of the first pause to wait, so that not all begin together."""
    if think_s:
        await asyncio.sleep(think_s * phase)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        await session.step("go to fridge 1")
        seconds.append(time.perf_counter() - began)
        if think_s:
            await asyncio.sleep(think_s)
    return seconds


def echo(lines: int) -> list[float]:
    """Seconds per line sent to another process and back, blocking, nothing parsed."""
    folder = Path(tempfile.mkdtemp(prefix="echo-"))
    process = subprocess.Popen([sys.executable, "-c", _ECHO, str(folder / "s")], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = []
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "s"))
            for _ in range(lines):
                began = time.perf_counter()
                client.sendall(_LINE)
                client.recv(65536)
                seconds.append(time.perf_counter() - began)
        return seconds
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


# --- commands ---------------------------------------------------------------------------------------------------------


async def measure_commands(rock: Rock, commands: int) -> dict[str, Any]:
    shell, exec_ = [], []
    async with rock.sandbox(image=BASE_TAG) as box:
        with closing(new_client(None, 60.0)) as api:
            await box.run("true")
            await nothing_starts(rock)
            for _ in range(commands):
                shell.append(await took(checked(box.run(COMMAND))))
            for _ in range(max(10, commands // 5)):
                exec_.append(await asyncio.to_thread(docker_exec, api, f"rock-{box.id}"))
    ratio = percentile(exec_, 0.5) / percentile(shell, 0.5)
    return {
        "shell_p50_ms": p50_ms(shell),
        "docker_exec_p50_ms": p50_ms(exec_),
        "exec_ratio": round(ratio, 1),
    }


# --- starts -----------------------------------------------------------------------------------------------------------


async def measure_starts(rock: Rock, starts: int) -> dict[str, Any]:
    """In turns, so that a busier moment of the machine touches both."""
    cold, engine, engine_sh = [], [], []
    with closing(new_client(None, 60.0)) as api:
        for number in range(starts):
            spec = SandboxSpec(image=BASE_TAG, environ={"COLD": str(number)})  # its own, so no pool has one
            began = time.perf_counter()
            async with rock.sandbox(spec=spec):
                cold.append(time.perf_counter() - began)
            await nothing_starts(rock)
            engine.append(await asyncio.to_thread(engine_start, api, spec, _PYTHON))
            engine_sh.append(await asyncio.to_thread(engine_start, api, spec, _SH))
    return {
        "cold_start_p50_ms": p50_ms(cold),
        "engine_start_p50_ms": p50_ms(engine),
        "engine_sh_start_p50_ms": p50_ms(engine_sh),
        "cold_start_ratio": round(percentile(cold, 0.5) / percentile(engine, 0.5), 3),
    }


def engine_start(api: APIClient, spec: SandboxSpec, command: list[str]) -> float:
    """Seconds from create to the first byte the command prints, with the walls that our sandboxes have."""
    shared_dir = Path(tempfile.mkdtemp(prefix="bare-"))
    try:
        began = time.perf_counter()
        container = api.create_container(
            spec.image,
            command=command,
            entrypoint=[],
            user=f"{UNPRIVILEGED}:{UNPRIVILEGED}",
            working_dir=spec.workdir,
            host_config=host_config(api, spec, shared_dir, UNPRIVILEGED, UNPRIVILEGED),
        )["Id"]
        try:
            output = api.attach(container, stdout=True, stream=True, logs=False)
            api.start(container)
            next(output)
            return time.perf_counter() - began
        finally:
            api.remove_container(container, force=True, v=True)
    finally:
        shutil.rmtree(shared_dir, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m benchmarks.sandbox_exec [--quick] [--files]``: what commands, files and copies cost in a sandbox.

Starts a platform of its own on Docker, leases hardened containers through the public SDK, and prints one JSON object as
its last line. Compared with each other are only numbers of the same run, taken in turns. Wall time:

- ``shell_p50_ms``: a command in a persistent shell, its exit code checked; ``exec_p50_ms``: a program of its own
  (``sh -c``); ``docker_exec_p50_ms``: the same through the engine's API in the same container;
  ``ratio_vs_docker_exec``: how often a shell command fits into one of those;
- ``swerex_p50_ms``: the same command in a session of SWE-ReX (its client ``RemoteRuntime``, its server); that server
  runs without a container here, on loopback, which is to its advantage. ``ratio_vs_swerex``: how often ours fits into
  it. SWE-ReX is installed into a virtual environment of its own if need be; ``swerex_problem``: why that failed;
- ``commands_per_s``: 8 sandboxes at once, no pause;
- ``write_mb_per_s``, ``read_mb_per_s``: one file of 48 MB; ``tar_up_mb_per_s``, ``tar_down_mb_per_s``: a directory of
  48 files of 1 MB as one archive;
- ``snapshot_50mb_s``: an image of a container that has written 50 MB; ``fork_4_s``: four copies of it, each leased, its
  files checked; ``pause_ms``, ``resume_ms``: of a sandbox with ten processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._containers import COMMAND, checked, docker_exec, docker_is_here, nothing_starts, on_docker, took
from benchmarks._measuring import machine, p50_ms, percentile
from rock.runtimes.docker import BASE_TAG
from rock.runtimes.docker_daemon import new_client
from rock.sdk import Limits, Rock, Sandbox, SandboxSpec

CROWD = 8
COPIES = 4
MB = 1 << 20
FILE_MB = 48
CHANGED_MB = 50
SWEREX = "1.4.0"
_SUM = 'python3 -c \'import zlib; print(zlib.crc32(open("/opt/changed", "rb").read()))\''
_ROOMY = Limits(tmpfs_bytes=256 * MB, memory_bytes=1 << 30)


@dataclass(frozen=True)
class Scale:
    commands: int
    slow_commands: int
    crowd_commands: int
    repeats: int


_FULL = Scale(commands=500, slow_commands=60, crowd_commands=300, repeats=5)
_QUICK = Scale(commands=100, slow_commands=20, crowd_commands=60, repeats=2)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.sandbox_exec", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer of everything: under a minute")
    parser.add_argument("--files", action="store_true", help="files and archives alone")
    args = parser.parse_args(argv)
    if not docker_is_here():
        return 1
    scale = _QUICK if args.quick else _FULL
    print(json.dumps(run_files(scale) if args.files else run(scale)))
    return 0


def run(scale: Scale) -> dict[str, Any]:
    python, problem = swerex_python()
    with on_docker(CROWD + COPIES) as url:
        return asyncio.run(measure(url, scale, python, problem)) | machine()


def run_files(scale: Scale) -> dict[str, Any]:
    async def alone(url: str) -> dict[str, Any]:
        async with Rock(url) as rock, rock.sandbox(spec=SandboxSpec(image=BASE_TAG, limits=_ROOMY)) as box:
            return await files(box, scale.repeats)

    with on_docker(1) as url:
        return asyncio.run(alone(url)) | machine()


async def measure(url: str, scale: Scale, python: str, problem: str) -> dict[str, Any]:
    async with Rock(url) as rock:
        async with rock.sandbox(spec=SandboxSpec(image=BASE_TAG, limits=_ROOMY)) as box:
            found = await commands(rock, box, scale, python, problem)
            found |= await files(box, scale.repeats)
            found |= await pausing(box, scale.repeats)
        found |= await crowd(rock, scale.crowd_commands)
        return found | await copies(rock, scale.repeats)


# --- commands ---------------------------------------------------------------------------------------------------------


async def commands(rock: Rock, box: Sandbox, scale: Scale, python: str, problem: str) -> dict[str, Any]:
    await box.run("true")
    await nothing_starts(rock)
    shell: list[float] = []
    exec_: list[float] = []
    docker: list[float] = []
    swerex: list[float] = []
    with closing(new_client(None, 60.0)) as api:
        for _ in range(2):  # in turns, so that a busier moment of the machine touches all
            shell += [await took(checked(box.run(COMMAND))) for _ in range(scale.commands // 2)]
            exec_ += [await took(checked(box.exec(["sh", "-c", COMMAND]))) for _ in range(scale.slow_commands)]
            for _ in range(scale.slow_commands // 2):
                docker.append(await asyncio.to_thread(docker_exec, api, f"rock-{box.id}"))
            if python:
                swerex += await asyncio.to_thread(swerex_commands, python, scale.slow_commands // 2)
    found: dict[str, Any] = {
        "shell_p50_ms": p50_ms(shell),
        "exec_p50_ms": p50_ms(exec_),
        "docker_exec_p50_ms": p50_ms(docker),
        "ratio_vs_docker_exec": round(percentile(docker, 0.5) / percentile(shell, 0.5), 1),
        "swerex_p50_ms": p50_ms(swerex) if swerex else None,
        "ratio_vs_swerex": round(percentile(swerex, 0.5) / percentile(shell, 0.5), 1) if swerex else None,
    }
    return found | ({"swerex_problem": problem} if problem else {})


async def crowd(rock: Rock, each: int) -> dict[str, Any]:
    async def busy(box: Sandbox) -> None:
        for _ in range(each):
            await checked(box.run(COMMAND))

    async with AsyncExitStack() as stack:
        boxes = [await stack.enter_async_context(rock.sandbox(BASE_TAG)) for _ in range(CROWD)]
        await asyncio.gather(*(box.run("true") for box in boxes))
        await nothing_starts(rock)
        seconds = await took(asyncio.gather(*map(busy, boxes)))
    return {"commands_per_s": round(CROWD * each / seconds)}


# --- files ------------------------------------------------------------------------------------------------------------


async def files(box: Sandbox, repeats: int) -> dict[str, Any]:
    data = os.urandom(FILE_MB * MB)
    seconds: dict[str, list[float]] = {"write": [], "read": [], "tar_up": [], "tar_down": []}
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.to_thread(spread, data, Path(folder))
        for _ in range(repeats):
            seconds["write"].append(await took(box.write_file("/tmp/data", data)))
            began = time.perf_counter()
            if await box.read_file("/tmp/data") != data:
                raise AssertionError("what was read is not what was written")
            seconds["read"].append(time.perf_counter() - began)
            seconds["tar_up"].append(await took(box.upload(folder, "/tmp/dir")))
            with tempfile.TemporaryDirectory() as back:
                seconds["tar_down"].append(await took(box.download("/tmp/dir", back)))
                if await asyncio.to_thread(Path(back, "f7").read_bytes) != data[7 * MB : 8 * MB]:
                    raise AssertionError("what was downloaded is not what was uploaded")
            await box.run("rm -rf /tmp/data /tmp/dir")
    return {f"{name}_mb_per_s": round(FILE_MB / percentile(each, 0.5)) for name, each in seconds.items()}


def spread(data: bytes, folder: Path) -> None:
    for number in range(FILE_MB):
        (folder / f"f{number}").write_bytes(data[number * MB : (number + 1) * MB])


# --- pausing and copies -----------------------------------------------------------------------------------------------


async def pausing(box: Sandbox, repeats: int) -> dict[str, Any]:
    jobs = [await box.start(["sleep", "300"]) for _ in range(10)]
    pause, resume = [], []
    for _ in range(5 * repeats):
        pause.append(await took(box.pause()))
        resume.append(await took(box.resume()))
    for job in jobs:
        await job.close()
    return {"pause_ms": p50_ms(pause), "resume_ms": p50_ms(resume)}


async def copies(rock: Rock, repeats: int) -> dict[str, Any]:
    spec = SandboxSpec(image=BASE_TAG, read_only=False, user="0:0", limits=_ROOMY)
    write = f"head -c {CHANGED_MB * MB} /dev/urandom > /opt/changed && {_SUM}"
    snapshot, fork = [], []
    for _ in range(repeats):
        async with rock.sandbox(spec=spec) as box:
            expected = await box.run(write)
            if expected.exit_code:
                raise AssertionError(f"nothing could be written: {expected.output}")
            snapshot.append(await took(box.snapshot()))
            began = time.perf_counter()
            made = await box.fork(COPIES)
            try:
                found = await asyncio.gather(*(copy.run(_SUM) for copy in made))
                fork.append(time.perf_counter() - began)
                if any(one.output != expected.output for one in found):
                    raise AssertionError("a copy's file is not the original's")
            finally:
                await asyncio.gather(*(copy.close() for copy in made))
        await nothing_starts(rock)
    return {
        "snapshot_50mb_s": round(percentile(snapshot, 0.5), 3),
        "fork_4_s": round(percentile(fork, 0.5), 3),
    }


# --- SWE-ReX ----------------------------------------------------------------------------------------------------------

_CLIENT = """
import asyncio, json, logging, socket, subprocess, sys, time
logging.disable(logging.CRITICAL)
from swerex.runtime.abstract import BashAction, CreateBashSessionRequest
from swerex.runtime.remote import RemoteRuntime

async def main(count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "swerex.server", "--host", "127.0.0.1", "--port", str(port), "--auth-token", "t"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        runtime = RemoteRuntime(host="http://127.0.0.1", port=port, auth_token="t")
        await runtime.wait_until_alive(timeout=60)
        await runtime.create_session(CreateBashSessionRequest(startup_timeout=10))
        seconds = []
        for number in range(count + 2):
            began = time.perf_counter()
            answer = await runtime.run_in_session(BashAction(command="(exit 7)", check="silent", timeout=30))
            if number >= 2:  # the first ones warm up
                seconds.append(time.perf_counter() - began)
            assert answer.exit_code == 7, answer
        print(json.dumps(seconds))
    finally:
        server.kill()
        server.wait()

asyncio.run(main(int(sys.argv[1])))
"""


def swerex_python() -> tuple[str, str]:
    """The interpreter of a virtual environment that has SWE-ReX, made if need be; else why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"rock-bench/swerex-{SWEREX}"
    python = cache / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", "import swerex.server, aiohttp"], check=False).returncode == 0:
        return str(python), ""
    make = [sys.executable, "-m", "venv", "--clear", str(cache)]
    # Its client needs aiohttp, which its package does not name.
    install = [str(python), "-m", "pip", "install", "-q", f"swe-rex=={SWEREX}", "aiohttp"]
    for argv in (make, install):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
            return "", f"SWE-ReX {SWEREX} could not be installed: {said[-1]}"
    return str(python), ""


def swerex_commands(python: str, count: int) -> list[float]:
    """Seconds of each of ``count`` commands in one session."""
    done = subprocess.run([python, "-c", _CLIENT, str(count)], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"SWE-ReX did not answer: {done.stderr.strip()[-2000:]}")
    return [float(one) for one in json.loads(done.stdout.splitlines()[-1])]


if __name__ == "__main__":
    raise SystemExit(main())

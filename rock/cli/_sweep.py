"""What an instance left behind on this machine: found by its label, in every runtime that can be used here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from rock.cluster.process import end_others
from rock.cluster.settings import instance_of, run_dir_of
from rock.domain.errors import RockError
from rock.runtimes.base import Observed, Runtime
from rock.runtimes.select import make_runtime

logger = logging.getLogger(__name__)

_ROUNDS = 5
REAL_RUNTIMES = ("docker", "bubblewrap")


async def usable_runtimes(home: Path) -> AsyncIterator[Runtime]:
    """Those that work on this machine, each closed after its turn."""
    instance = instance_of(home)
    for name in REAL_RUNTIMES:
        runtime = make_runtime(name, instance, home)
        try:
            if (await runtime.check()).ok:
                yield runtime
        finally:
            await runtime.close()


async def left_behind(home: Path) -> list[tuple[str, Observed]]:
    """Every sandbox of this home's instance, with its runtime's name."""
    if not (home / "instance").exists():
        return []
    return [(runtime.name, seen) async for runtime in usable_runtimes(home) for seen in await runtime.list_owned()]


async def sweep(home: Path) -> int:
    """Remove them all, their snapshots and directories; returns how many sandboxes there were. One that resists does
    not keep the others.

    Looks again after removing: what a killed platform had just asked a container engine for may come into being later.
    """
    if not (home / "instance").exists():
        return 0
    await end_others(home, ())  # first: a node that lives would start anew what is removed here
    removed: set[str] = set()
    first_error: RockError | None = None
    async for runtime in usable_runtimes(home):
        for _ in range(_ROUNDS):
            owned = [seen for seen in await runtime.list_owned() if seen.handle not in removed]
            for seen in owned:
                try:
                    await runtime.stop(seen.handle)
                    removed.add(seen.handle)
                except RockError as error:
                    logger.warning("sandbox %s was not removed: %s", seen.sandbox_id, error)
                    first_error = first_error or error
            if not owned:
                break
        for name in await runtime.snapshots():
            try:
                await runtime.remove_snapshot(name)
            except RockError as error:
                logger.warning("snapshot %s was not removed: %s", name, error)
                first_error = first_error or error
    if first_error is not None:
        raise first_error
    for pid, sandbox in await asyncio.to_thread(own_processes, home):
        logger.warning("sandbox %s: process %d had outlived it", sandbox, pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        removed.add(sandbox)
    for directory in shared_directories(home):
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    return len(removed)


def shared_directories(home: Path) -> list[Path]:
    """Those that sandboxes of this home share with it, whether or not the sandboxes exist."""
    try:
        run_dir = run_dir_of(home, instance_of(home))
        return sorted([*run_dir.glob("sb-*"), *run_dir.glob("*/sb-*")])  # of the one node, or of several
    except OSError:
        return []


def own_processes(home: Path) -> list[tuple[int, str]]:
    """bubblewrap's processes whose command line names a shared directory of this home, with the sandbox's id."""
    prefix = f"{run_dir_of(home, instance_of(home))}/"
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if os.path.basename(words[0]) != "bwrap":
            continue
        for word in words:
            *above, sandbox = word.removeprefix(prefix).split("/") if word.startswith(prefix) else [""]
            if sandbox.startswith("sb-") and len(above) <= 1:
                found.append((process.pid, sandbox))
                break
    return found

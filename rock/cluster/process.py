"""Nodes as processes of this machine: ``rock up --nodes N``.

Invariants: a process that ends without being told is started again, with backoff; one that still runs from before
control's restart is taken over, not started a second time. Each has a run directory and a label of its own. Without
control it ends itself (:mod:`rock.node.hosting`), so a control that is killed leaves nothing for good.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from rock.cluster.remote import RemoteNode
from rock.cluster.settings import PlatformSettings, default_capacity, run_dir_of
from rock.control.nodes import NodeBook
from rock.domain.backoff import Backoff, BackoffPolicy
from rock.domain.errors import PlatformUnavailable, RockError, StorageError
from rock.node.hosting import HostSettings
from rock.wire.handle import NodeHandle
from rock.wire.node_wire import Address

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.2
_END_TIMEOUT_S = 30.0
_LOG_LINES = 15


def token_of(home: Path) -> str:
    """The secret that this home's nodes and their control share; made once. Raises StorageError."""
    path = home / "nodes" / "token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))
        return path.read_text().strip()
    except OSError as error:
        raise StorageError(f"{path} cannot be used: {error.strerror}", cause=str(error)) from error


def host_settings(settings: PlatformSettings, instance: str, name: str, **where: object) -> HostSettings:
    """What a node of this platform is told, wherever it runs. ``where``: the fields that depend on the machine."""
    return HostSettings.model_validate(
        {
            "name": name,
            "instance": instance,
            "home": settings.home,
            "alone_s": settings.alone_s,
            "capacity": settings.capacity or default_capacity(),
            "max_starting": settings.max_starting,
            "start_timeout_s": settings.start_timeout_s,
            "probe_interval_s": settings.probe_interval_s,
            "probe_timeout_s": settings.probe_timeout_s,
            "dead_after_s": settings.dead_after_s,
            "reconcile_interval_s": settings.reconcile_interval_s,
            "backoff_base_s": settings.backoff.base_s,
            "backoff_cap_s": settings.backoff.cap_s,
            **where,
        }
    )


class NodeProcess:
    """One node's process, and the handle to it."""

    def __init__(self, settings: HostSettings, log_path: Path) -> None:
        self.settings = settings
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._found: psutil.Process | None = None
        self._backoff = Backoff(BackoffPolicy(0.1, 5.0), random.Random())
        self._guard: asyncio.Task[None] | None = None
        self.handle = RemoteNode(settings.name, self._locate, settings.token)

    async def open(self, within_s: float) -> None:
        """Raises PlatformUnavailable with the last lines of its log when it does not come up."""
        await asyncio.to_thread(self._take_over)
        self._guard = asyncio.create_task(self._keep_running())
        try:
            await self.handle.open(within_s)
        except RockError as error:
            await self._stop_guarding()
            await asyncio.to_thread(self._end)
            last = await asyncio.to_thread(_tail, self._log_path)
            raise type(error)(
                f"node {self.settings.name} did not start: {error.message}",
                hint=f"Its log is {self._log_path}.",
                cause=last,
            ) from error

    async def _locate(self) -> Address:
        return Address.parse(self.settings.listen)

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return self._found.pid if self._found is not None and _lives(self._found) else 0

    def _take_over(self) -> None:
        self._found = running(self.settings.notice) if self.settings.notice else None
        if self._found is not None:
            log.info("node=%s pid=%d still runs and is taken over", self.settings.name, self._found.pid)

    async def _keep_running(self) -> None:
        while True:
            if not self.pid:
                if self._process is not None:
                    log.warning("node=%s ended with code %s", self.settings.name, self._process.returncode)
                    await asyncio.sleep(self._backoff.failed(time.monotonic()))
                await asyncio.to_thread(self._spawn)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _spawn(self) -> None:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self.settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log_path.open("ab") as output:
            # A session of its own: Ctrl-C in control's terminal must not end it before control has told it how.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rock.node", "--config", "-"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self.settings.model_dump_json().encode())
        log.info("node=%s pid=%d started", self.settings.name, self._process.pid)

    async def close(self, *, keep_sandboxes: bool) -> None:
        await self._stop_guarding()
        await self.handle.close(keep_sandboxes=keep_sandboxes)
        await asyncio.to_thread(self._end)

    async def abandon(self) -> None:
        """Let go of it as a control does that is killed; for tests, and for whoever hands it to another control."""
        await self._stop_guarding()
        await self.handle.detach()
        if self._process is not None:
            self._process.returncode = self._process.poll() or 0  # no longer ours to wait for

    async def _stop_guarding(self) -> None:
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.gather(self._guard, return_exceptions=True)

    def _end(self) -> None:
        """Wait for the end it was told to come to, then insist."""
        process = psutil.Process(self.pid) if self.pid else None
        if process is None:
            return
        for signal_it, within_s in ((None, _END_TIMEOUT_S), (process.terminate, 5.0), (process.kill, 5.0)):
            with suppress(psutil.NoSuchProcess):
                if signal_it is not None:
                    log.warning("node=%s pid=%d does not end by itself", self.settings.name, process.pid)
                    signal_it()
            deadline = time.monotonic() + within_s
            while self.pid and time.monotonic() < deadline:
                time.sleep(0.02)
            if not self.pid:
                return


def _lives(process: psutil.Process) -> bool:
    """Ended processes that nobody has looked after, as in a container whose first process reaps none, do not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running(notice: Path) -> psutil.Process | None:
    """The node's process that wrote the notice, if it lives."""
    try:
        pid = int(json.loads(notice.read_text())["pid"])
        process = psutil.Process(pid)
        # A pid that was used anew since would belong to another program.
        return process if "rock.node" in process.cmdline() and _lives(process) else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


class ProcessNodes:
    """``count`` nodes on this machine; they share its capacity."""

    def __init__(self, settings: PlatformSettings, instance: str, runtime: str) -> None:
        run_dir, token, home = run_dir_of(settings.home, instance), token_of(settings.home), settings.home
        capacity = max(1, (settings.capacity or default_capacity()) // settings.nodes)
        self._processes = [
            NodeProcess(
                host_settings(
                    settings,
                    instance,
                    name,
                    run_dir=run_dir / name,
                    listen=f"unix:{run_dir / name / 'node.sock'}",
                    token=token,
                    runtime=runtime,
                    notice=home / "nodes" / f"{name}.json",
                    capacity=capacity,
                ),
                home / "logs" / f"{name}.log",
            )
            for name in (f"node-{number}" for number in range(1, settings.nodes + 1))
        ]
        self._within_s = settings.start_timeout_s

    @property
    def processes(self) -> Sequence[NodeProcess]:
        return tuple(self._processes)

    async def open(self) -> Sequence[NodeHandle]:
        results = await asyncio.gather(
            *(process.open(self._within_s) for process in self._processes), return_exceptions=True
        )
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed:
            await self.close(keep_sandboxes=True)
            raise failed[0]
        return [process.handle for process in self._processes]

    def follow(self, book: NodeBook) -> None:
        """They are there from the start to the end."""

    async def close(self, *, keep_sandboxes: bool = False) -> None:
        await asyncio.gather(*(process.close(keep_sandboxes=keep_sandboxes) for process in self._processes))


async def end_others(home: Path, wanted: Collection[str]) -> None:
    """End the node processes of this home that are none of ``wanted``: a start with fewer nodes than the one before."""
    for notice in sorted((home / "nodes").glob("*.json")):
        process = await asyncio.to_thread(running, notice)
        if notice.stem in wanted or process is None:
            continue
        log.info("node=%s pid=%d is no longer wanted", notice.stem, process.pid)
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            deadline = time.monotonic() + _END_TIMEOUT_S
            while _lives(process):
                if time.monotonic() > deadline:
                    raise PlatformUnavailable(f"process {process.pid} of node {notice.stem} does not end")
                await asyncio.sleep(_LOOK_EVERY_S)


def _tail(path: Path) -> str:
    with suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    return ""

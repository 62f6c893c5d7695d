"""Sandboxes under bubblewrap, for machines without Docker: the same guest, the same walls as far as they go.

Namespaces for everything, no network, no capabilities, a read-only root made of the host's /usr and the Python that
runs us, private /tmp and /dev/shm of bounded size. Limits: with root rights a cgroup (memory, processes, CPU); else
what an ordinary user can set, which is per process (memory, open files, file size).

A sandbox is meant to outlive the platform's process (a restarted one adopts it), so it is not tied to a parent, which
bubblewrap would take to be the *thread* that started it. What exists is read from files under ``<home>/bwrap``, which
no sandbox can see; bubblewrap itself writes the process id and the exit code there. A process is believed to be the
sandbox only if its command line carries the sandbox's id, which is never used twice: a recycled pid is never killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from rock.domain.detection import Look, Seen
from rock.domain.errors import ImageNotFound, InvalidRequest, RuntimeUnavailable
from rock.runtimes.base import Availability, Observed, RuntimeEvent
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.bwrap_argv import HOST_IMAGE, bwrap_argv, user_inside, write_accounts
from rock.runtimes.cgroups import Cgroup
from rock.runtimes.looking import look_at_guest
from rock.runtimes.shared import prepare, socket_path
from rock.runtimes.usage import Usage, usage_in_groups, usage_of_tree
from rock.wire.models import SandboxSpec

T = TypeVar("T")
log = logging.getLogger(__name__)

_THREADS = 4
_START_S = 10.0
_STOP_S = 10.0
# A look at 50 sandboxes costs 10 ms. The end of a guest's connection tells of most deaths before this does.
_POLL_S = 0.5
_HANDLE_PREFIX = "bwrap-"


@dataclass(frozen=True, slots=True)
class _Record:
    """What is written before the process exists."""

    sandbox_id: str
    instance: str
    spec_digest: str
    node: str = ""


@dataclass(frozen=True, slots=True)
class _Status:
    """What bubblewrap wrote: the first process inside, and how it ended."""

    pid: int = 0
    exit_code: int | None = None


class BubblewrapRuntime:
    """``home``: the state directory (default ``$ROCK_HOME`` or ``~/.rock``). With ``node`` it sees that node's only."""

    name = "bubblewrap"
    default_image = HOST_IMAGE

    def __init__(self, instance: str, home: Path | None = None, *, node: str = "") -> None:
        home = home or Path(os.environ.get("ROCK_HOME") or "~/.rock").expanduser().absolute()
        self.instance = instance
        self.node = node
        self._root = home / "bwrap"
        self._catalog = EnvCatalog(home)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="bwrap")

    async def check(self) -> Availability:
        return await self._in_thread(check_bubblewrap)

    async def ensure_image(self, image: str) -> str:
        await self._in_thread(lambda: self._bundle(image))
        return ""  # a bundle's name holds the digest of what is in it

    async def start(self, sandbox_id: str, spec: SandboxSpec, shared_dir: Path) -> str:
        return await self._in_thread(lambda: self._start(sandbox_id, spec, shared_dir))

    async def stop(self, handle: str) -> None:
        await self._in_thread(lambda: self._stop(handle))

    async def inspect(self, handle: str) -> Observed | None:
        return await self._in_thread(lambda: self._inspect(handle))

    async def look(self, handle: str) -> Look:
        return await self._in_thread(lambda: self._look(handle))

    async def list_owned(self) -> Sequence[Observed]:
        return await self._in_thread(self._list_owned)

    async def usage(self, handle: str) -> Usage | None:
        return await self._in_thread(lambda: self._usage(handle))

    async def written(self, handle: str, enough: int) -> int | None:
        """Everything that can be written is memory, each part with a limit of its own."""
        return None

    async def logs(self, handle: str, lines: int) -> Sequence[str]:
        return await self._in_thread(lambda: self._logs(handle, lines))

    async def snapshot(self, handle: str, name: str, lease_id: str) -> int:
        raise InvalidRequest(
            "bubblewrap keeps no files of a sandbox: its root is the host's own, read-only",
            hint="Use Docker for environments that recover by snapshots; here they are replayed from the start.",
        )

    async def remove_snapshot(self, name: str) -> None:
        """There are none."""

    async def snapshots(self) -> Sequence[str]:
        return ()

    async def disk_used(self) -> float:
        return 0.0

    async def watch(self) -> AsyncIterator[RuntimeEvent]:
        """Looks again and again: it reads a few small files per sandbox."""
        told: set[str] = set()
        oom_kills: dict[str, int] = {}
        while True:
            seen = await self.list_owned()
            for one in seen:
                if one.oom_kills > oom_kills.get(one.sandbox_id, 0):
                    yield RuntimeEvent(one.sandbox_id, "oom")
                if not one.running and one.sandbox_id not in told:
                    yield RuntimeEvent(one.sandbox_id, "died", one.exit_code)
            oom_kills = {one.sandbox_id: one.oom_kills for one in seen}
            told = {one.sandbox_id for one in seen if not one.running}
            await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """Sandboxes live on."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for process in self._processes.values():
                process.returncode = process.poll() or 0  # no longer ours to wait for

    # --- in threads ---------------------------------------------------------------------------------------------------

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def _bundle(self, image: str) -> Path | None:
        """The directory to bind; None for the plain host. Raises ImageNotFound."""
        if image == HOST_IMAGE or image.startswith("rock-base:"):
            return None
        directory = self._catalog.bundle_dir(image)
        if directory is None:
            name = image.removeprefix("rock-env-").partition(":")[0]
            built = image.startswith("rock-env-")
            raise ImageNotFound(
                f"bubblewrap has no bundle for image {image!r}",
                hint=f"Build it: rock env build {name}" if built else f"Without Docker use image {HOST_IMAGE!r}.",
            )
        return directory

    def _start(self, sandbox_id: str, spec: SandboxSpec, shared_dir: Path) -> str:
        bundle = self._bundle(spec.image)
        socket_path(shared_dir)
        if shutil.which("bwrap") is None:
            found = check_bubblewrap()
            raise RuntimeUnavailable(found.detail, hint=found.remedy)
        owner = user_inside(spec) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        prepare(shared_dir, *owner)
        folder = self._root / sandbox_id
        folder.mkdir(parents=True, mode=0o700)
        write_accounts(folder)
        (folder / "record.json").write_text(
            json.dumps(asdict(_Record(sandbox_id, self.instance, spec.digest, self.node)))
        )
        handle = _HANDLE_PREFIX + sandbox_id
        try:
            self._spawn(handle, folder, spec, shared_dir, bundle)
        except (RuntimeUnavailable, InvalidRequest):
            self._stop(handle)
            raise
        return handle

    def _spawn(self, handle: str, folder: Path, spec: SandboxSpec, shared_dir: Path, bundle: Path | None) -> None:
        status_fd = os.open(folder / "status", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        log_fd = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        argv = bwrap_argv(folder.name, spec, shared_dir, bundle, folder, status_fd)
        cgroup = Cgroup.create(folder.name, spec.limits)
        try:
            process = subprocess.Popen(
                [*cgroup.entering(), *argv],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=(status_fd,),
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeUnavailable(f"cannot start bwrap: {error.strerror}", hint="Try: rock doctor") from error
        finally:
            os.close(status_fd)
            os.close(log_fd)
        with self._lock:
            self._processes[handle] = process
        deadline = time.monotonic() + _START_S
        while not _read_status(folder).pid:
            if process.poll() is not None or time.monotonic() > deadline:
                said = (folder / "log").read_text(errors="replace").strip()
                raise RuntimeUnavailable(
                    f"bwrap did not start the sandbox: {said or 'it said nothing'}", hint="Try: rock doctor", cause=said
                )
            time.sleep(0.002)

    def _stop(self, handle: str) -> None:
        folder = self._folder(handle)
        if folder is None:
            return
        deadline = time.monotonic() + _STOP_S
        with self._lock:
            process = self._processes.get(handle)
        while True:
            pid = _live_pid(folder)
            if pid:  # the first process of its namespace: the kernel ends all the others with it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            elif process is None or process.poll() is not None:
                break
            elif not _read_status(folder).pid:
                process.kill()  # it has not come as far as making the sandbox
            if time.monotonic() > deadline:
                raise RuntimeUnavailable(f"sandbox {folder.name} (process {pid}) cannot be killed")
            time.sleep(0.002)
        Cgroup.of(folder.name).remove()
        shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            self._processes.pop(handle, None)

    def _inspect(self, handle: str) -> Observed | None:
        folder = self._folder(handle)
        record = _read_record(folder) if folder is not None else None
        if folder is None or record is None:
            return None
        with self._lock:
            process = self._processes.get(handle)
        if process is not None:
            process.poll()  # reap it
        running = _live_pid(folder) != 0
        oom_kills = Cgroup.of(folder.name).oom_kills()
        return Observed(
            sandbox_id=record.sandbox_id,
            handle=handle,
            running=running,
            exit_code=None if running else _read_status(folder).exit_code,
            oom_killed=not running and oom_kills > 0,
            spec_digest=record.spec_digest,
            node=record.node,
            oom_kills=oom_kills,
        )

    def _look(self, handle: str) -> Look:
        folder = self._folder(handle)
        pid = _live_pid(folder) if folder is not None else 0
        return look_at_guest(pid) if pid else Look(Seen.GONE)

    def _usage(self, handle: str) -> Usage | None:
        folder = self._folder(handle)
        pid = _live_pid(folder) if folder is not None else 0
        if folder is None or not pid:
            return None
        return usage_in_groups(Cgroup.of(folder.name).directories) or usage_of_tree(pid)

    def _list_owned(self) -> Sequence[Observed]:
        try:
            names = sorted(os.listdir(self._root))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            record = _read_record(self._root / name)
            if record is not None and record.instance == self.instance and self.node in ("", record.node):
                observed = self._inspect(_HANDLE_PREFIX + name)
                if observed is not None:
                    found.append(observed)
        return found

    def _logs(self, handle: str, lines: int) -> Sequence[str]:
        folder = self._folder(handle)
        try:
            text = (folder / "log").read_text(errors="replace") if folder is not None else ""
        except FileNotFoundError:
            text = ""
        return text.splitlines()[-lines:]

    def _folder(self, handle: str) -> Path | None:
        name = handle.removeprefix(_HANDLE_PREFIX)
        if not handle.startswith(_HANDLE_PREFIX) or not name or "/" in name or name.startswith("."):
            raise InvalidRequest(f"{handle!r} is no handle of a bubblewrap sandbox")
        folder = self._root / name
        return folder if folder.is_dir() else None


def _read_record(folder: Path) -> _Record | None:
    try:
        return _Record(**json.loads((folder / "record.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None  # being made or removed at this moment


def _read_status(folder: Path) -> _Status:
    """bubblewrap writes one JSON object per line, at the start and at the end."""
    pid, exit_code = 0, None
    try:
        text = (folder / "status").read_text()
    except OSError:
        return _Status()
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        pid = entry.get("child-pid", pid)
        exit_code = entry.get("exit-code", exit_code)
    return _Status(pid, exit_code)


def _live_pid(folder: Path) -> int:
    """The sandbox's first process if it lives, else 0."""
    pid = _read_status(folder).pid
    if not pid:
        return 0
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return 0
    return pid if folder.name.encode() in command.split(b"\0") else 0


def check_bubblewrap() -> Availability:
    """Whether a sandbox can be made here. Blocking, tens of milliseconds."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return Availability(False, "bubblewrap is not installed", "Install it: sudo apt-get install bubblewrap")
    for helper in ("prlimit", "setpriv"):
        if shutil.which(helper) is None:
            return Availability(False, f"{helper} is not installed", "Install it: sudo apt-get install util-linux")
    user = ["--unshare-user"] if os.geteuid() != 0 else []
    trial = [bwrap, "--unshare-pid", "--unshare-net", *user, "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, timeout=10.0, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Availability(False, f"bwrap does not run: {error}", "Reinstall it: sudo apt-get install bubblewrap")
    if done.returncode == 0:
        version = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=10.0, check=False)
        return Availability(True, version.stdout.strip())
    remedy = "Allow user namespaces: sudo sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536"
    if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").exists():
        remedy = "Allow user namespaces: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    return Availability(False, f"bwrap cannot make a sandbox: {done.stderr.strip()}", remedy)

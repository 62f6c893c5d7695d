"""Sandboxes as Docker containers, through the SDK's low-level API, in a few threads of our own.

Hardened unless the spec says otherwise: no capabilities, no new privileges, no network, read-only root with a bounded
/tmp, memory without swap, process, CPU and file limits, an unprivileged user, default seccomp, and an init that reaps.
The only thing of the host inside is the shared directory. Works the same on cgroup v1 and v2.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import requests
from docker.api import APIClient
from docker.errors import APIError, DockerException, NotFound
from docker.types import LogConfig, Ulimit

from rock.domain.detection import Look, Seen
from rock.domain.errors import ImageNotFound, InvalidRequest, RockError, RuntimeUnavailable
from rock.runtimes import docker_snapshots
from rock.runtimes.background import in_daemon_thread
from rock.runtimes.base import Availability, Observed, RuntimeEvent
from rock.runtimes.cgroups import docker_groups, oom_kills_in
from rock.runtimes.docker_daemon import CALL_TIMEOUT_S, THREADS, check_docker, new_client, translated
from rock.runtimes.docker_disk import DockerDisk
from rock.runtimes.docker_events import EventThread
from rock.runtimes.image_uses import note_use
from rock.runtimes.looking import look_at_guest, look_in_groups
from rock.runtimes.shared import INSIDE, environ_of, guest_argv, prepare, socket_path, user_of
from rock.runtimes.usage import Usage, usage_in_groups
from rock.wire.models import SandboxSpec

T = TypeVar("T")

_LOG_OPTIONS = {"max-size": "1m", "max-file": "1"}

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
BASE_TAG = f"rock-base:py{PYTHON}"
"""What plain sandboxes start from; :mod:`rock.runtimes.images` makes it."""

LABEL_INSTANCE = "rock.instance"
LABEL_SANDBOX = "rock.sandbox"
LABEL_SPEC = "rock.spec"
LABEL_NODE = "rock.node"
LABEL_HOME = "rock.home"
"""The state directory of the platform that looks after it."""
LABEL_SNAPSHOT = "rock.snapshot"
"""On an image that was made of a sandbox: the lease it is kept for."""


class ImageMaker(Protocol):
    """Makes images that are not here yet: :class:`rock.runtimes.making.TaskImageMaker`."""

    def knows(self, image: str) -> bool: ...

    def make(self, image: str) -> bool:
        """Blocking, minutes. Raises ImageNotFound, ImageBuildFailed, RuntimeUnavailable."""
        ...


class DockerRuntime:
    """``instance``: the platform's id; only its containers are ours. Without ``base_url`` DOCKER_HOST decides.

    ``node``: nodes that share an engine see their own containers only; empty: those of every node of the instance.
    ``maker``: makes the images that it knows when they are first needed.
    """

    name = "docker"
    default_image = BASE_TAG

    def __init__(
        self,
        instance: str,
        *,
        node: str = "",
        home: Path | None = None,
        base_url: str | None = None,
        maker: ImageMaker | None = None,
    ) -> None:
        self.instance = instance
        self._maker = maker
        self._labels = {LABEL_INSTANCE: instance, **({LABEL_NODE: node} if node else {})}
        self._home_dir = home
        self._home = {LABEL_HOME: str(home)} if home else {}
        self._base_url = base_url
        self._client: APIClient | None = None
        self._client_lock = threading.Lock()
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._disk = DockerDisk()

    # --- the Runtime protocol -----------------------------------------------------------------------------------------

    async def check(self) -> Availability:
        return await self._in_thread(check_docker, self._base_url)

    async def ensure_image(self, image: str) -> str:
        try:
            return await self._call(self._ensure_image, image)
        except ImageNotFound:
            if self._maker is None or not await self._in_thread(self._maker.knows, image):
                raise
        await in_daemon_thread(self._maker.make, image)
        return await self._call(self._ensure_image, image)

    async def start(self, sandbox_id: str, spec: SandboxSpec, shared_dir: Path) -> str:
        return await self._call(self._start, sandbox_id, spec, shared_dir)

    async def stop(self, handle: str) -> None:
        await self._call(self._stop, handle)

    async def inspect(self, handle: str) -> Observed | None:
        return await self._call(self._inspect, handle)

    async def look(self, handle: str) -> Look:
        here = await asyncio.to_thread(look_in_groups, docker_groups(handle))
        return here if here.seen is not Seen.UNKNOWN else await self._call(self._look, handle)

    async def list_owned(self) -> Sequence[Observed]:
        return await self._call(self._list_owned)

    async def usage(self, handle: str) -> Usage | None:
        return await asyncio.to_thread(usage_in_groups, docker_groups(handle)) or await self._call(self._usage, handle)

    async def written(self, handle: str, enough: int) -> int | None:
        return await self._call(lambda: self._disk.written(self._api(), handle, enough))

    async def logs(self, handle: str, lines: int) -> Sequence[str]:
        return await self._call(self._logs, handle, lines)

    async def snapshot(self, handle: str, name: str, lease_id: str) -> int:
        labels = {**self._labels, **self._home, LABEL_SNAPSHOT: lease_id}
        return await self._call(lambda: docker_snapshots.make(self._api(), handle, name, labels))

    async def remove_snapshot(self, name: str) -> None:
        await self._call(lambda: docker_snapshots.remove(self._api(), name))

    async def snapshots(self) -> Sequence[str]:
        labels = [LABEL_SNAPSHOT, *self._label_filter]
        return await self._call(lambda: docker_snapshots.names(self._api(), labels))

    async def disk_used(self) -> float:
        return await self._call(lambda: docker_snapshots.disk_used(self._api()))

    async def watch(self) -> AsyncIterator[RuntimeEvent]:
        client = functools.partial(new_client, self._base_url, CALL_TIMEOUT_S)
        events = EventThread(client, self._label_filter, LABEL_SANDBOX, asyncio.get_running_loop())
        try:
            while True:
                yield await events.queue.get()
        finally:
            events.stop()

    async def close(self) -> None:
        """Containers live on."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    @property
    def _label_filter(self) -> list[str]:
        return [f"{key}={value}" for key, value in self._labels.items()]

    # --- in threads ---------------------------------------------------------------------------------------------------

    def _api(self) -> APIClient:
        with self._client_lock:
            if self._client is None:
                self._client = new_client(self._base_url, CALL_TIMEOUT_S)
            return self._client

    def _ensure_image(self, image: str) -> str:
        try:
            return str(self._api().inspect_image(image)["Id"])
        except NotFound as error:
            raise image_not_found(image) from error

    def _start(self, sandbox_id: str, spec: SandboxSpec, shared_dir: Path) -> str:
        socket_path(shared_dir)
        uid, gid = user_of(spec)
        prepare(shared_dir, uid, gid)
        api = self._api()
        try:
            created = self._disk.create(
                api,
                spec,
                command=guest_argv(spec),
                entrypoint=[],
                name=f"rock-{sandbox_id}",
                hostname=sandbox_id,
                user=f"{uid}:{gid}",
                working_dir=spec.workdir,
                environment=environ_of(spec, sandbox_id),
                labels={**self._labels, **self._home, LABEL_SANDBOX: sandbox_id, LABEL_SPEC: spec.digest},
                host_config=host_config(api, spec, shared_dir, uid, gid),
            )
        except NotFound as error:
            raise image_not_found(spec.image) from error
        handle: str = created["Id"]
        try:
            api.start(handle)
        except (DockerException, requests.RequestException) as error:
            with contextlib.suppress(DockerException, requests.RequestException):
                api.remove_container(handle, force=True)
            raise refused_start(spec, error) from error
        if self._home_dir is not None:
            note_use(self._home_dir, spec.image)
        return handle

    def _stop(self, handle: str) -> None:
        self._disk.forget(handle)
        api = self._api()
        try:
            api.remove_container(handle, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:  # somebody else is removing it already: wait until it is gone
                raise
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while self._exists(api, handle):
            if time.monotonic() > deadline:
                raise RuntimeUnavailable(
                    f"container {handle[:12]} is still there {CALL_TIMEOUT_S:g} s after its removal was asked for",
                    hint=f"Try: docker rm -f {handle[:12]}",
                )
            time.sleep(0.02)

    @staticmethod
    def _exists(api: APIClient, handle: str) -> bool:
        try:
            api.inspect_container(handle)
        except NotFound:
            return False
        return True

    def _inspect(self, handle: str) -> Observed | None:
        try:
            found = self._api().inspect_container(handle)
        except NotFound:
            return None
        state, labels = found["State"], found["Config"]["Labels"] or {}
        if state["Status"] == "removing":
            return None  # somebody has asked for that: its output can no longer be read
        running = bool(state["Running"])
        never_ran = state["Status"] == "created"
        return Observed(
            sandbox_id=labels.get(LABEL_SANDBOX, ""),
            handle=found["Id"],
            running=running,
            paused=bool(state["Paused"]),
            exit_code=None if running or never_ran else state["ExitCode"],
            oom_killed=bool(state["OOMKilled"]),
            spec_digest=labels.get(LABEL_SPEC, ""),
            node=labels.get(LABEL_NODE, ""),
            oom_kills=oom_kills_in(docker_groups(found["Id"])),
        )

    def _look(self, handle: str) -> Look:
        try:
            state = self._api().inspect_container(handle)["State"]
        except NotFound:
            return Look(Seen.GONE)
        if not state["Running"]:
            return Look(Seen.GONE)
        return Look(Seen.PAUSED) if state["Paused"] else look_at_guest(state["Pid"], cgroup_name=handle)

    def _usage(self, handle: str) -> Usage | None:
        """As the engine says, where its groups are on another machine."""
        try:
            now: dict[str, Any] = self._api().stats(handle, stream=False, one_shot=True)
        except NotFound:
            return None
        memory, pids = now.get("memory_stats") or {}, (now.get("pids_stats") or {}).get("current")
        if "usage" not in memory or not pids:
            return None  # it does not run
        details = memory.get("stats") or {}
        idle = details.get("total_inactive_file", details.get("inactive_file", 0))
        return Usage(now["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, max(0, memory["usage"] - idle), pids)

    def _list_owned(self) -> Sequence[Observed]:
        found = self._api().containers(all=True, filters={"label": self._label_filter})
        observed = []
        for one in found:
            if one["State"] in ("running", "paused"):
                labels = one["Labels"]
                observed.append(
                    Observed(
                        sandbox_id=labels.get(LABEL_SANDBOX, ""),
                        handle=one["Id"],
                        running=True,
                        paused=one["State"] == "paused",
                        spec_digest=labels.get(LABEL_SPEC, ""),
                        node=labels.get(LABEL_NODE, ""),
                        oom_kills=oom_kills_in(docker_groups(one["Id"])),
                    )
                )
            elif one["State"] == "removing":
                labels = one["Labels"]
                observed.append(
                    Observed(labels.get(LABEL_SANDBOX, ""), one["Id"], running=False, node=labels.get(LABEL_NODE, ""))
                )
            elif (dead := self._inspect(one["Id"])) is not None:  # few, and only inspect knows how they ended
                observed.append(dead)
        return observed

    def _logs(self, handle: str, lines: int) -> Sequence[str]:
        try:
            raw: bytes = self._api().logs(handle, tail=lines)
        except NotFound:
            return []
        return raw.decode("utf-8", "replace").splitlines()[-lines:]

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        """In one of our threads, with Docker's errors in our vocabulary."""
        return await self._in_thread(translated, function, *args)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, functools.partial(function, *args))


def host_config(api: APIClient, spec: SandboxSpec, shared_dir: Path, uid: int, gid: int) -> dict[str, Any]:
    """The container's limits and walls."""
    limits = spec.limits
    config: dict[str, Any] = api.create_host_config(
        binds={str(shared_dir): {"bind": INSIDE, "mode": "rw"}},
        network_mode=spec.network,
        read_only=spec.read_only,
        tmpfs={"/tmp": f"rw,nosuid,nodev,exec,size={limits.tmpfs_bytes},mode=1777,uid={uid},gid={gid}"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes,
        nano_cpus=int(limits.cpus * 1e9),
        pids_limit=limits.pids,
        ulimits=[
            Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files),
            Ulimit(name="fsize", soft=spec.file_size_bytes, hard=spec.file_size_bytes),
            Ulimit(name="core", soft=0, hard=0),
        ],
        init=True,
        ipc_mode="private",
        log_config=LogConfig(type="json-file", config=_LOG_OPTIONS),
    )
    return config


def image_not_found(image: str) -> ImageNotFound:
    if image.startswith("rock-env-"):
        name = image.removeprefix("rock-env-").partition(":")[0]
        return ImageNotFound(f"environment {name!r} has no image {image}", hint=f"Build it: rock env build {name}")
    if image.startswith("rock-base:"):
        return ImageNotFound(f"the base image {image} has not been made yet", hint="Make it: rock image build")
    return ImageNotFound(f"no local image {image!r}", hint=f"Get it with `docker pull {image}`, or: rock image build")


def refused_start(spec: SandboxSpec, error: Exception) -> RockError:
    """Why a created container did not start, in our vocabulary."""
    text = str(getattr(error, "explanation", None) or error)
    if "executable file not found" in text or "no such file or directory" in text:
        return InvalidRequest(
            f"image {spec.image} has no python3 on its PATH, which the guest needs (3.8 or newer)",
            hint="Add python3 to the image.",
            cause=text,
        )
    if isinstance(error, APIError) and error.is_client_error():
        return InvalidRequest(f"Docker refuses to start {spec.image}: {text}", cause=text)
    return RuntimeUnavailable(f"Docker could not start {spec.image}: {text}", hint="Try: rock doctor", cause=text)

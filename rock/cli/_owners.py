"""Whose is what: everything of ours on this machine, of this and of other instances, and who looks after it.

Invariants: what belongs to an instance whose platform runs is never said to be without an owner on the word of one
look, because sandboxes come and go meanwhile; of an instance whose state directory cannot be seen from here (it is in a
container, or another machine's), only what has ended is: a guest whom nobody looks after ends itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rock.cli import _state
from rock.cli._sweep import left_behind, own_processes, shared_directories, usable_runtimes
from rock.cluster.settings import instance_of, run_dir_of
from rock.domain.errors import RockError
from rock.runtimes.docker import LABEL_HOME, LABEL_INSTANCE, LABEL_SANDBOX, LABEL_SNAPSHOT
from rock.runtimes.docker_daemon import check_docker
from rock.runtimes.images import docker_client
from rock.wire.models import LeaseView, SandboxView

_KIND = {"docker": "container", "bubblewrap": "sandbox"}
_DOCKER_TIMEOUT_S = 30.0
# A container that does not run may be one that is being started or removed at this moment.
_SURELY_ENDED_S = 120.0


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that takes room."""

    kind: str
    """container, sandbox (bubblewrap), process, directory, lease, snapshot, volume, network."""
    id: str
    instance: str
    owner: str
    """Who looks after it; empty for nobody."""
    note: str = ""
    handle: str = ""
    """What it is removed by."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the running platform knows."""

    sandboxes: Mapping[str, SandboxView]
    leases: Mapping[str, LeaseView]


Ask = Callable[[], Awaitable[Known]]


async def nobody() -> Known:
    """The answer where no platform runs."""
    return Known({}, {})


async def inventory(home: Path, ask: Ask) -> list[Item]:
    """Everything. ``ask`` is asked before and after looking: what comes or goes meanwhile has an owner."""
    before = await ask()
    mine = await _own(home) if (home / "instance").exists() else []
    others = await asyncio.to_thread(_in_docker, home) + await asyncio.to_thread(_other_processes, home)
    after = await ask()
    known = Known({**before.sandboxes, **after.sandboxes}, {**before.leases, **after.leases})
    leases = [Item("lease", one.id, instance_of(home), _holder(one), one.sandbox_id) for one in after.leases.values()]
    return [*(_owned(item, known) for item in (*mine, *others)), *leases]


def _owned(item: Item, known: Known) -> Item:
    """With its owner, where the platform of this home is the one to say."""
    if item.owner:
        return item
    owner = ""
    if item.kind == "snapshot":
        lease = known.leases.get(item.note)
        owner = f"lease {lease.id}" if lease else ""
    elif (view := known.sandboxes.get(item.note)) is not None:
        owner = f"lease {view.lease_id}" if view.lease_id else f"the node ({view.state})"
    return Item(item.kind, item.id, item.instance, owner, item.note, item.handle)


def _holder(lease: LeaseView) -> str:
    return f"run {lease.run_id}" if lease.run_id else f"its heartbeats, within {lease.ttl_s:g} s"


async def _own(home: Path) -> list[Item]:
    instance = instance_of(home)
    items = [
        Item(
            "container" if name == "docker" else "sandbox", seen.sandbox_id, instance, "", seen.sandbox_id, seen.handle
        )
        for name, seen in await left_behind(home)
    ]
    there = {item.id for item in items}
    for pid, sandbox in await asyncio.to_thread(own_processes, home):
        if sandbox not in there:
            items.append(Item("process", str(pid), instance, "", sandbox, str(pid)))
            there.add(sandbox)
    for path in await asyncio.to_thread(shared_directories, home):
        if path.name not in there:
            items.append(Item("directory", str(path), instance, "", path.name, str(path)))
    return items


def _in_docker(home: Path) -> list[Item]:
    """Containers of other instances; snapshots, volumes and networks of all. Blocking."""
    if not check_docker().ok:
        return []
    own = instance_of(home) if (home / "instance").exists() else ""
    ours = {"label": LABEL_INSTANCE}
    items = []
    with docker_client(_DOCKER_TIMEOUT_S) as api:
        for one in api.containers(all=True, filters=ours):
            labels = one["Labels"]
            if (instance := labels[LABEL_INSTANCE]) != own:
                young = time.time() - one["Created"] < _SURELY_ENDED_S
                running = young or one["State"] in ("running", "paused")
                owner = _other_owner(labels.get(LABEL_HOME, ""), running)
                items.append(
                    Item("container", one["Id"][:12], instance, owner, labels.get(LABEL_SANDBOX, ""), one["Id"])
                )
        for image in api.images(filters={"label": LABEL_SNAPSHOT}):
            items.append(_labelled("snapshot", image["Id"], image.get("Labels") or {}, own))
        for volume in api.volumes(filters=ours).get("Volumes") or []:
            items.append(_labelled("volume", volume["Name"], volume.get("Labels") or {}, own))
        for network in api.networks(filters=ours):
            items.append(_labelled("network", network["Id"], network.get("Labels") or {}, own))
    return items


def _labelled(kind: str, handle: str, labels: Mapping[str, str], own: str) -> Item:
    instance = labels.get(LABEL_INSTANCE, "")
    owner = "" if instance == own else _other_owner(labels.get(LABEL_HOME, ""), running=False)
    note = labels.get(LABEL_SNAPSHOT) or labels.get(LABEL_SANDBOX, "")
    return Item(kind, handle.removeprefix("sha256:")[:19], instance, owner, note, handle)


def _other_owner(home: str, running: bool) -> str:
    """Of something of another instance, as far as it can be told from here."""
    if home and (Path(home) / "instance").exists():
        return f"the platform of {home}" if _state.lock_is_held(Path(home)) else ""
    return "unknown: its state directory is not to be seen from here" if running else ""


def _other_processes(home: Path) -> list[Item]:
    """bubblewrap's processes of other homes, by the shared directory in their command line. Blocking."""
    own = f"{run_dir_of(home, instance_of(home))}/" if (home / "instance").exists() else ""
    seen: dict[str, Item] = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if os.path.basename(words[0]) != "bwrap":
            continue
        shared = next((w for w in words if os.path.basename(w).startswith("sb-") and os.path.isabs(w)), "")
        if not shared or (own and shared.startswith(own)) or shared in seen:
            continue
        above = Path(shared).parent
        theirs = above.parent if above.name == "run" else above.parent.parent
        owner = _other_owner(str(theirs), running=True)
        seen[shared] = Item("process", str(process.pid), "", owner, os.path.basename(shared), str(process.pid))
    return list(seen.values())


# --- removing --------------------------------------------------------------------------------------------------------


async def remove(home: Path, items: Sequence[Item]) -> list[str]:
    """Remove what has no owner; returns what could not be removed, and why."""
    failed = []
    lost = [item for item in items if not item.owner]
    own = instance_of(home) if (home / "instance").exists() else ""
    mine = [item for item in lost if own and item.instance == own]
    async for runtime in usable_runtimes(home):
        for item in mine:
            if item.kind == _KIND[runtime.name]:
                try:
                    await runtime.stop(item.handle)
                except RockError as error:
                    failed.append(f"{item.kind} {item.id}: {error}")
    for item in lost:
        if item.kind in ("process", "directory"):
            await asyncio.to_thread(_remove_local, item)
    foreign = [i for i in lost if i.kind in _REMOVERS and (i.kind != "container" or i.instance != own)]
    if foreign:
        failed += await asyncio.to_thread(_remove_in_docker, foreign)
    return failed


def _remove_local(item: Item) -> None:
    if item.kind == "directory":
        shutil.rmtree(item.handle, ignore_errors=True)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(item.handle), signal.SIGKILL)


_REMOVERS: dict[str, Callable[[Any, str], Any]] = {
    "container": lambda api, handle: api.remove_container(handle, force=True, v=True),
    "snapshot": lambda api, handle: api.remove_image(handle, force=True),
    "volume": lambda api, handle: api.remove_volume(handle),
    "network": lambda api, handle: api.remove_network(handle),
}


def _remove_in_docker(items: Sequence[Item]) -> list[str]:
    failed = []
    for item in items:
        try:
            with docker_client(_DOCKER_TIMEOUT_S) as api:
                _REMOVERS[item.kind](api, item.handle)
        except RockError as error:
            failed.append(f"{item.kind} {item.id}: {error}")
    return failed

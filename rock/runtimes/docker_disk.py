"""What containers write on the engine's disk, and how that is bounded. Blocking, for the runtime's threads.

A container writes into a layer of its own where its root is not read-only, and into the volumes that its image
declares. Where the engine's files can be read from here they are walked, which takes 3 to 5 µs a file; else the engine
is asked, which walks them itself and knows of the layer only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from docker.api import APIClient
from docker.errors import APIError, NotFound

from rock.runtimes.cgroups import docker_groups, pids_in
from rock.runtimes.usage import written_bytes
from rock.wire.models import SandboxSpec

_ASK = "ask the engine"


class DockerDisk:
    def __init__(self) -> None:
        self._places: dict[str, tuple[Path, ...] | str] = {}
        self._has_quota: bool | None = None
        """Whether the storage driver bounds a layer itself; None: not tried yet."""

    # --- the driver's own quota

    def create(self, api: APIClient, spec: SandboxSpec, **settings: Any) -> dict[str, Any]:
        """``create_container`` with the layer's size bounded, if the storage driver can do that.

        The engine says so only when it is asked: overlay2 on xfs with project quotas, btrfs, zfs and devicemapper can.
        """
        host_config = settings["host_config"]
        if not spec.read_only and self._has_quota is not False:
            bounded = {**host_config, "StorageOpt": {"size": str(spec.limits.disk_bytes)}}
            try:
                created: dict[str, Any] = api.create_container(spec.image, **{**settings, "host_config": bounded})
            except APIError as error:
                if "storage-opt" not in str(error.explanation or error).lower():
                    raise
                self._has_quota = False
            else:
                self._has_quota = True
                return created
        unbounded: dict[str, Any] = api.create_container(spec.image, **settings)
        return unbounded

    # --- how much there is

    def written(self, api: APIClient, handle: str, enough: int) -> int | None:
        """None for one that can write nothing to the disk, or is gone."""
        places = self._places.get(handle)
        if places is None:
            try:
                places = _places_of(api.inspect_container(handle))
            except NotFound:
                return None
            self._places[handle] = places
        if not isinstance(places, str):
            return written_bytes(places, pids_in(docker_groups(handle)), enough) if places else None
        found = api.containers(all=True, size=True, filters={"id": handle})
        return int(found[0].get("SizeRw") or 0) if found else None

    def forget(self, handle: str) -> None:
        self._places.pop(handle, None)


def _places_of(container: dict[str, Any]) -> tuple[Path, ...] | str:
    found = [Path(mount["Source"]) for mount in container.get("Mounts") or () if mount.get("Type") == "volume"]
    if not container["HostConfig"]["ReadonlyRootfs"]:
        upper = ((container.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
        if not upper:
            return _ASK
        found.append(Path(upper))
    if all(os.access(place, os.R_OK | os.X_OK) for place in found):
        return tuple(found)
    return _ASK

"""Images of bundles that were built and are no longer current: each new build of an environment leaves its predecessor.

Invariant: what a container stands on, or a name says is current, is never removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass

from docker.errors import APIError

from rock.runtimes.bundles import IMAGE_PREFIX
from rock.runtimes.images import docker_client

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class OldImage:
    tag: str
    id: str
    own_bytes: int
    """What its removal frees: without the layers that it shares with others."""


def old_images(current: Collection[str]) -> list[OldImage]:
    """Those of no ``current`` name that no container uses; the largest first. Blocking. Raises RuntimeUnavailable."""
    found = []
    with docker_client(_TIMEOUT_S) as api:
        used = {one["ImageID"] for one in api.containers(all=True)}
        shared = {one["Id"]: max(0, one.get("SharedSize", 0)) for one in api.df()["Images"] or ()}
        for image in api.images():
            if image["Id"] in used:
                continue
            for tag in image.get("RepoTags") or ():
                if tag.startswith(IMAGE_PREFIX) and tag not in current:
                    own_bytes = image["Size"] - shared.get(image["Id"], 0)
                    found.append(OldImage(tag, image["Id"], own_bytes))
    return sorted(found, key=lambda image: -image.own_bytes)


def remove_images(images: Collection[OldImage]) -> list[OldImage]:
    """Returns those that are gone now; one that somebody has begun to use meanwhile stays. Blocking."""
    removed = []
    with docker_client(_TIMEOUT_S) as api:
        for image in images:
            with contextlib.suppress(APIError):
                api.remove_image(image.tag)
                removed.append(image)
    return removed

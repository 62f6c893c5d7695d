"""The images of ours on this machine: when they were last used, what may go, and what is fetched before it is needed.

Invariants: an image that a container stands on is never removed; a use that could not be noted costs nothing but an
earlier eviction; only images of ours (the base image, environments' and what `rock image build` made) are evicted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from docker.errors import APIError, NotFound
from docker.utils.build import exclude_paths

from rock.domain.errors import Conflict, ImageNotFound, InvalidRequest
from rock.domain.eviction import Kept, to_evict
from rock.runtimes.image_uses import used_at_s
from rock.runtimes.images import LABEL_OURS, docker_client, ensure_base_image, has_image
from rock.runtimes.pulling import pull

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class StoredImage:
    tag: str
    id: str
    own_bytes: int
    used_at_s: float
    in_use: bool


def stored_images(home: Path) -> list[StoredImage]:
    """Ours, the longest unused first. Blocking. Raises RuntimeUnavailable."""
    found = []
    with docker_client(_TIMEOUT_S) as api:
        in_use = {one["ImageID"] for one in api.containers(all=True)}
        shared = {one["Id"]: max(0, one.get("SharedSize", 0)) for one in api.df()["Images"] or ()}
        for image in api.images():
            ours = LABEL_OURS in (image.get("Labels") or {})
            for tag in image.get("RepoTags") or ():
                if tag != "<none>:<none>" and (ours or tag.startswith("rock-env-")):
                    own_bytes = max(0, image["Size"] - shared.get(image["Id"], 0))
                    last_s = max(used_at_s(home, tag), float(image["Created"]))
                    found.append(StoredImage(tag, image["Id"], own_bytes, last_s, image["Id"] in in_use))
    return sorted(found, key=lambda image: (image.used_at_s, image.tag))


def evict(home: Path, limit_bytes: int, *, spared: Collection[str] = (), dry_run: bool = False) -> list[StoredImage]:
    """Remove the longest unused until all take at most ``limit_bytes``; those that went. Blocking."""
    images = {image.tag: image for image in stored_images(home)}
    kept = [
        Kept(image.tag, image.own_bytes, image.used_at_s, image.in_use or image.tag in spared)
        for image in images.values()
    ]
    chosen = [images[one.tag] for one in to_evict(kept, limit_bytes)]
    if dry_run:
        return chosen
    gone = []
    for image in chosen:
        with contextlib.suppress(Conflict):  # somebody has begun to use it meanwhile
            remove(image.tag)
            gone.append(image)
    return gone


def remove(tag: str) -> None:
    """Blocking. Raises ImageNotFound; Conflict while a container stands on it."""
    with docker_client(_TIMEOUT_S) as api:
        try:
            api.remove_image(tag)
        except NotFound as error:
            raise ImageNotFound(f"There is no image {tag!r}.", hint="`rock image ls` lists those of ours.") from error
        except APIError as error:
            if error.status_code != 409:
                raise
            raise Conflict(
                f"Image {tag} is in use.", hint="Remove its sandboxes first (`rock ps`).", cause=str(error.explanation)
            ) from error


def prefetch(tag: str, on_line: Callable[[str], None]) -> bool:
    """Fetch ``tag`` from its registry; False if it is here already. Blocking, minutes. Raises ImageNotFound."""
    with docker_client(_TIMEOUT_S) as api:
        if has_image(api, tag):
            return False
    pull(tag, on_line)
    return True


def content_tag(directory: Path, on_line: Callable[[str], None]) -> tuple[str, bool]:
    """The name that a build of ``directory`` has, and whether it is here already. Blocking. Raises InvalidRequest."""
    recipe = directory / "Dockerfile"
    if not recipe.is_file():
        raise InvalidRequest(f"there is no Dockerfile at {recipe}", hint="Give the directory that holds one.")
    needs_base = "ARG BASE" in recipe.read_text(encoding="utf-8", errors="replace")
    base = ensure_base_image(on_line=on_line) if needs_base else ""
    with docker_client(_TIMEOUT_S) as api:
        base_id = str(api.inspect_image(base)["Id"]) if base else ""
        name = re.sub(r"[^a-z0-9._-]+", "-", directory.resolve().name.lower()).strip("-._") or "image"
        tag = f"{name}:{content_digest(directory, base_id)}"
        return tag, has_image(api, tag)


def content_digest(directory: Path, base_id: str) -> str:
    """12 hexadecimal digits for what a build of ``directory`` depends on: its files as the builder sees them, their
    modes, and the base image. Blocking."""
    ignore = directory / ".dockerignore"
    patterns = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    found = hashlib.sha256(base_id.encode())
    names = exclude_paths(str(directory), [line for line in patterns if line.strip()])
    for name in sorted({*names, "Dockerfile"}):
        path = directory / name
        mode = os.lstat(path).st_mode
        found.update(f"\0{name}\0{mode:o}\0".encode("utf-8", "surrogateescape"))
        if path.is_symlink():
            found.update(os.fsencode(os.readlink(path)))
        elif path.is_file():
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:12]

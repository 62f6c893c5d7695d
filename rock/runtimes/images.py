"""Docker images: the base image that works without a registry, the list of ours, and builds from a Dockerfile.

Base image ladder: a local tag; else ``python:X.Y-slim`` from a registry, if one answers soon; else a file system
made of the interpreter that runs us, its shared libraries and this machine's basic commands (3 s, no network).
X.Y is always our own version, because environments' packages are installed by our own pip.

A base image that we made carries its recipe as a label, which images built on it inherit: one whose recipe is no longer
ours is made again. A base image without that label is somebody's own, or a registry's, and stays.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from docker.api import APIClient
from docker.errors import DockerException, NotFound
from docker.utils.build import exclude_paths

from rock.domain.errors import ImageBuildFailed, InvalidRequest, RuntimeUnavailable
from rock.runtimes.docker import BASE_TAG, PYTHON
from rock.runtimes.docker_daemon import check_docker, new_client
from rock.runtimes.rootfs import recipe, write_rootfs

OnLine = Callable[[str], None]

LABEL_OURS = "rock.image"
LABEL_RECIPE = "rock.base.recipe"

# A registry that says nothing for this long is treated as absent; a download under way says something all the time.
_PULL_SILENCE_S = 8.0
_BUILD_SILENCE_S = 1800.0
_CAUSE_LINES = 25


@dataclass(frozen=True, slots=True)
class ImageInfo:
    tag: str
    id: str
    size_bytes: int
    created_at_s: float
    """Unix seconds."""


def ensure_base_image(*, on_line: OnLine | None = None, pull: bool = True) -> str:
    """The tag of a base image that exists now. Blocking, seconds. Raises RuntimeUnavailable, ImageBuildFailed."""
    say = on_line or _ignore
    with docker_client(_BUILD_SILENCE_S) as api:
        if is_current(api, BASE_TAG):
            return BASE_TAG
        if has_image(api, BASE_TAG):
            say(f"{BASE_TAG} was made by another recipe; making it again.")
            outdated = api.inspect_image(BASE_TAG)["Id"]
            _import_base(api, say)
            with contextlib.suppress(DockerException):  # an image or a container stands on it
                api.remove_image(outdated)
        elif not (pull and _pull_base(api, say)):
            _import_base(api, say)
    return BASE_TAG


def build_image(
    tag: str,
    directory: Path,
    *,
    dockerfile_text: str | None = None,
    extra: Mapping[str, Path] | None = None,
    build_args: Mapping[str, str] | None = None,
    on_line: OnLine | None = None,
) -> str:
    """Build ``directory`` with its Dockerfile (or that text) as ``tag``; one retry. Returns the tag. Blocking.

    A Dockerfile with ``ARG BASE`` is given the base image. ``extra``: further directories put into the build's context
    under these names.
    Raises ImageBuildFailed (the last lines are its cause), InvalidRequest, RuntimeUnavailable.
    """
    recipe = directory / "Dockerfile"
    if dockerfile_text is None:
        if not recipe.is_file():
            raise InvalidRequest(f"there is no Dockerfile at {recipe}", hint="Give the directory that holds one.")
        dockerfile_text = recipe.read_text(encoding="utf-8", errors="replace")
    say = on_line or _ignore
    arguments = dict(build_args or {})
    if "ARG BASE" in dockerfile_text and "BASE" not in arguments:
        arguments["BASE"] = ensure_base_image(on_line=on_line)
    with docker_client(_BUILD_SILENCE_S) as api, tempfile.NamedTemporaryFile(suffix=".tar") as context:
        _write_context(Path(context.name), directory, dockerfile_text, extra or {})
        failure = _build_once(api, tag, Path(context.name), arguments, say)
        if failure:
            say("The build failed; trying once more.")
            failure = _build_once(api, tag, Path(context.name), arguments, say)
    if failure:
        raise ImageBuildFailed(
            f"building {tag} from {directory} failed: {failure[-1]}",
            hint="The last lines of its output are below.",
            cause="\n".join(failure),
        )
    return tag


def list_images() -> list[ImageInfo]:
    """The base images, environments' images and what ``build_image`` made; newest first. Blocking."""
    found = []
    with docker_client(60.0) as api:
        for image in api.images():
            ours = LABEL_OURS in (image.get("Labels") or {})
            for tag in image.get("RepoTags") or ():
                if tag != "<none>:<none>" and (ours or tag.startswith(("rock-base:", "rock-env-"))):
                    found.append(ImageInfo(tag, image["Id"], image["Size"], float(image["Created"])))
    return sorted(found, key=lambda image: (-image.created_at_s, image.tag))


def has_image(api: APIClient, tag: str) -> bool:
    try:
        api.inspect_image(tag)
    except NotFound:
        return False
    return True


def is_current(api: APIClient, tag: str) -> bool:
    """Whether the image exists and is not, or does not stand on, a base image that we would make otherwise now."""
    try:
        labels = api.inspect_image(tag)["Config"].get("Labels") or {}
    except NotFound:
        return False
    return labels.get(LABEL_RECIPE) in (None, recipe())


@contextlib.contextmanager
def docker_client(timeout_s: float) -> Iterator[APIClient]:
    """A client, or RuntimeUnavailable with the reason and the way out."""
    try:
        api = new_client(None, timeout_s)
    except (DockerException, requests.RequestException, OSError) as error:
        found = check_docker()
        raise RuntimeUnavailable(found.detail, hint=found.remedy, cause=str(error)) from error
    try:
        yield api
    except (DockerException, requests.RequestException) as error:
        raise RuntimeUnavailable(f"Docker failed: {error}", hint="Try: rock doctor", cause=str(error)) from error
    finally:
        api.close()


# --- the ladder's rungs -----------------------------------------------------------------------------------------------


def _pull_base(api: APIClient, say: OnLine) -> bool:
    source = f"python:{PYTHON}-slim"
    say(f"Asking a registry for {source} …")
    repository, version = source.split(":")
    quick = new_client(None, _PULL_SILENCE_S)
    try:
        for event in quick.pull(repository, tag=version, stream=True, decode=True):
            if "error" in event:
                say(f"No: {event['error']}")
                return False
        api.tag(source, *BASE_TAG.split(":"))
        return True
    except (DockerException, requests.RequestException) as error:
        say(f"No registry answers ({type(error).__name__}).")
        return False
    finally:
        quick.close()


def _import_base(api: APIClient, say: OnLine) -> None:
    say(f"Making {BASE_TAG} from this machine's Python {PYTHON} …")
    repository, tag = BASE_TAG.split(":")
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        write_rootfs(Path(archive.name))
        changes = ["ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "ENV LANG=C.UTF-8", 'CMD ["python3"]']
        changes.append(f"LABEL {LABEL_RECIPE}={recipe()}")
        answer = api.import_image_from_file(archive.name, repository=repository, tag=tag, changes=changes)
    if "error" in str(answer):
        raise ImageBuildFailed(f"Docker did not import the base image: {answer}", cause=str(answer))
    say(f"Made {BASE_TAG}.")


def _write_context(path: Path, directory: Path, dockerfile_text: str, extra: Mapping[str, Path]) -> None:
    """The directory (less what .dockerignore names), the further ones, and the Dockerfile; readable by any user."""
    ignore = directory / ".dockerignore"
    patterns = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    with tarfile.open(path, "w") as archive:
        for name in sorted(exclude_paths(str(directory), [line for line in patterns if line.strip()])):
            if name != "Dockerfile" and "__pycache__" not in name:
                archive.add(directory / name, name, recursive=False, filter=_readable)
        for name, source in extra.items():
            archive.add(source, name, filter=_readable)
        entry = tarfile.TarInfo("Dockerfile")
        data = dockerfile_text.encode()
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Sandboxes run as another user than the one who built."""
    entry.mode |= 0o555 if entry.isdir() else 0o444
    entry.uid = entry.gid = 0
    return entry


def _build_once(api: APIClient, tag: str, context: Path, arguments: dict[str, str], say: OnLine) -> list[str]:
    """The last lines of a failed build; empty if it succeeded."""
    tail: deque[str] = deque(maxlen=_CAUSE_LINES)
    with context.open("rb") as archive:
        events: Iterable[dict[str, Any]] = api.build(
            fileobj=archive,
            custom_context=True,
            tag=tag,
            buildargs=arguments,
            labels={LABEL_OURS: tag},
            rm=True,
            forcerm=True,
            decode=True,
        )
        return _follow_build(events, tail, say)


def _follow_build(events: Iterable[dict[str, Any]], tail: deque[str], say: OnLine) -> list[str]:
    for event in events:
        text = str(event.get("stream") or event.get("error") or event.get("status") or "")
        for line in text.splitlines():
            if line.strip():
                tail.append(line)
                say(line)
        if "error" in event:
            return list(tail) or ["the builder gave no reason"]
    return []


def _ignore(_: str) -> None:
    pass

"""Tasks that are played in an image of their own, as SWE-bench's are, and what a bundle says of them.

A bundle's ``images.json`` gives each such task the names of the image it stands on, best first: the first that is on
this machine is taken, and if none is, the first is pulled. ``task-data/TASK/`` holds what only that task's sandbox has
in its data. The two and the environment's Dockerfile make the image that the task is played in; its name says of what
it was made, so it never changes its meaning.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rock.domain.errors import ImageBuildFailed

FILE = "images.json"
DATA = "task-data"
_TAG_CHARS = 128


@dataclass(frozen=True, slots=True)
class TaskImage:
    task: str
    tag: str
    """After the colon of the name of the image that is made."""
    stands_on: tuple[str, ...]
    data: Path | None
    """The directory whose content is added to the data; None if there is none."""


def read(bundle: Path) -> Mapping[str, tuple[str, ...]]:
    """The names of the images, by task; empty where every task is played in the environment's own.

    Raises ImageBuildFailed naming what is wrong with the file.
    """
    path = bundle / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _malformed(path, str(error)) from error
    if not isinstance(found, dict):
        raise _malformed(path, f"it holds a {type(found).__name__}")
    out = {}
    for task, names in found.items():
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise _malformed(path, f"task {task!r} has {names!r}")
        out[task] = tuple(names)
    return out


def is_task_image(image: str) -> bool:
    """Whether it is the image of one task, and not an environment's own, by its name."""
    return image.startswith("rock-env-") and "-" in image.partition(":")[2]


def task_image(bundle: Path, task: str) -> TaskImage | None:
    """The image that ``task`` is played in; None if that is the environment's own. Raises as :func:`read`."""
    stands_on = read(bundle).get(task)
    return None if stands_on is None else _made(bundle, task, stands_on)


def all_of(bundle: Path) -> Iterator[TaskImage]:
    """Of every task that has one. Raises as :func:`read`."""
    return (_made(bundle, task, stands_on) for task, stands_on in read(bundle).items())


def _made(bundle: Path, task: str, stands_on: tuple[str, ...]) -> TaskImage:
    data = bundle / DATA / task
    made_of = hashlib.sha256(json.dumps([task, *stands_on]).encode())
    for path in _files(data):
        content = path.read_bytes()
        made_of.update(f"\0{path.relative_to(data)}\0{len(content)}\0".encode() + content)
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", task)
    tag = f"{bundle.name}-{made_of.hexdigest()[:8]}-{readable}"[:_TAG_CHARS]
    return TaskImage(task, tag, stands_on, data if data.is_dir() else None)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else []


def _malformed(path: Path, found: str) -> ImageBuildFailed:
    return ImageBuildFailed(
        f"{path} is not understood: {found}",
        hint="Expected {task: [name of an image, …]}; let the environment's `prepare` write that.",
    )

"""Environments on disk: find them, build their bundles, and say how a sandbox of one is made.

A bundle is everything an environment needs beside Python: ``src/`` (its package), ``site/`` (its requirements),
``data/`` (what its ``prepare`` wrote) and ``tasks.json``; tasks that are played in images of their own are
:mod:`rock.runtimes.task_images`'. It is built under a temporary name and renamed, so a crash
leaves nothing half done, and it is named by the digest of what it was built from. Docker gets it as an image,
bubblewrap as a read-only directory; inside it is always /opt/rock/env.

Environments are found, never imported: by the entry-point group ``rock.envs`` and in the directories of $ROCK_ENV_PATH.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rock.domain.errors import ImageNotFound, InvalidRequest, NotFound
from rock.runtimes import task_images
from rock.runtimes.docker import PYTHON
from rock.runtimes.manifest import FILE, EnvManifest, read_manifest
from rock.wire.models import EnvView, PoolSize, SandboxSpec

INSIDE = "/opt/rock/env"
IMAGE_PREFIX = "rock-env-"
_LEFT_OUT = {"__pycache__", "tests", "node_modules"}


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment as found: its manifest, its directory, and the dotted package that the directory is."""

    manifest: EnvManifest
    directory: Path
    package: str

    @property
    def name(self) -> str:
        return self.manifest.name

    def sources(self) -> list[Path]:
        """Its files, relative to its directory, in a fixed order."""
        return sorted(path.relative_to(self.directory) for path in _files(self.directory))

    def digest(self, *, quick: bool = False) -> str:
        """12 hexadecimal digits over everything a bundle is built from."""
        found = hashlib.sha256(f"{self.package}\0{PYTHON}\0{quick}\0".encode())
        for path in self.sources():
            data = (self.directory / path).read_bytes()
            found.update(f"{path}\0{len(data)}\0".encode() + data)
        return found.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A built bundle. ``stale``: the environment's files have changed since."""

    name: str
    digest: str
    quick: bool
    directory: Path
    stale: bool = False

    @property
    def image(self) -> str:
        return f"{IMAGE_PREFIX}{self.name}:{self.digest}"

    def images(self) -> list[str]:
        """Its own and those of tasks that have one, made or not."""
        return [self.image, *(f"{IMAGE_PREFIX}{self.name}:{one.tag}" for one in task_images.all_of(self.directory))]

    def tasks(self) -> dict[str, list[str]]:
        path = self.directory / "tasks.json"
        if not path.is_file():
            return {}
        tasks: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        return tasks


class EnvCatalog:
    """Every environment there is. ``home``: the state directory. All methods block on the disk."""

    def __init__(self, home: Path, *, search: Sequence[Path] | None = None) -> None:
        self.root = home / "envs"
        self._search = search

    def names(self) -> list[str]:
        return sorted(environment.name for environment in self.environments())

    def environments(self) -> list[Environment]:
        """Of two with one name the first found counts: $ROCK_ENV_PATH comes before what is installed."""
        found: dict[str, Environment] = {}
        for directory, package in self._directories():
            manifest = read_manifest(directory)
            found.setdefault(
                manifest.name, Environment(manifest, directory, package or _package_of(directory, manifest.entry))
            )
        return list(found.values())

    def get(self, name: str) -> Environment:
        """Raises NotFound, naming the nearest."""
        environments = {environment.name: environment for environment in self.environments()}
        if name in environments:
            return environments[name]
        near = difflib.get_close_matches(name, environments, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise NotFound(
            f"no environment {name!r}",
            hint=f"{hint}Known: {', '.join(sorted(environments)) or 'none'}. See: rock env list",
        )

    def built(self, name: str) -> Bundle | None:
        """The current bundle, if there is one."""
        environment = self.get(name)
        try:
            current = json.loads((self.root / name / "current.json").read_text(encoding="utf-8"))
            digest, quick = str(current["digest"]), bool(current["quick"])
        except (OSError, ValueError, KeyError):
            return None
        directory = self.root / name / digest
        if not directory.is_dir():
            return None
        return Bundle(name, digest, quick, directory, stale=environment.digest(quick=quick) != digest)

    def require_built(self, name: str) -> Bundle:
        bundle = self.built(name)
        if bundle is None:
            raise ImageNotFound(f"environment {name!r} has not been built", hint=f"Build it: rock env build {name}")
        return bundle

    def view(self, name: str) -> EnvView:
        environment, bundle = self.get(name), self.built(name)
        manifest = environment.manifest
        detail = ""
        if bundle is None:
            detail = f"not built: rock env build {name}"
        elif bundle.stale:
            detail = f"its files have changed since it was built: rock env build {name}"
        elif bundle.quick:
            detail = "built with --quick: few tasks"
        return EnvView(
            name=name,
            version=manifest.version,
            description=manifest.description,
            recovery=manifest.recovery,
            built=bundle is not None,
            image=bundle.image if bundle else "",
            bundle_digest=bundle.digest if bundle else "",
            splits={split: len(tasks) for split, tasks in bundle.tasks().items()} if bundle else {},
            loosened=self._loosened(environment, bundle),
            build_detail=detail,
            episode_s=manifest.deadlines.episode_s,
            scoring_s=manifest.deadlines.scoring_s,
            cleanup_s=manifest.deadlines.cleanup_s,
            objectives={what.removesuffix("_s"): seconds for what, seconds in manifest.objectives.model_dump().items()},
            snapshot_every=manifest.snapshot.every_steps if manifest.recovery == "snapshot" else 0,
            judge=manifest.judge,
            task_images=len(task_images.read(bundle.directory)) if bundle else 0,
        )

    def tasks(self, name: str, split: str = "") -> list[str]:
        """The tasks of one split, or of all. Raises NotFound, ImageNotFound (not yet built)."""
        splits = self.require_built(name).tasks()
        if not split:
            return [task for tasks in splits.values() for task in tasks]
        if split not in splits:
            raise NotFound(
                f"environment {name!r} has no split {split!r}", hint=f"It has: {', '.join(splits) or 'none'}."
            )
        return splits[split]

    def spec(self, name: str) -> SandboxSpec:
        """How a sandbox of the environment is made. Raises NotFound, ImageNotFound (not yet built)."""
        return self._spec(self.get(name), self.require_built(name))

    def task_spec(self, name: str, task: str) -> SandboxSpec | None:
        """The same of a task that is played in an image of its own; None if it is played in the environment's.

        Raises as :meth:`spec`, and ImageBuildFailed (the bundle's images.json).
        """
        environment, bundle = self.get(name), self.require_built(name)
        image = task_images.task_image(bundle.directory, task)
        if image is None:
            return None
        spec = self._spec(environment, bundle)
        user = environment.manifest.task_images.user or spec.user
        return spec.model_copy(update={"image": f"{IMAGE_PREFIX}{name}:{image.tag}", "user": user})

    def task_of(self, image: str) -> tuple[Bundle, task_images.TaskImage] | None:
        """The bundle and the task that ``rock-env-<name>:<tag>`` is the image of; None if there is none (any more)."""
        name, _, tag = image.removeprefix(IMAGE_PREFIX).partition(":")
        digest = tag.partition("-")[0]
        directory = self.bundle_dir(f"{IMAGE_PREFIX}{name}:{digest}") if image.startswith(IMAGE_PREFIX) else None
        if directory is None or digest == tag:
            return None
        found = next((one for one in task_images.all_of(directory) if one.tag == tag), None)
        return (Bundle(name, digest, False, directory), found) if found is not None else None

    def pool_size(self, name: str) -> PoolSize:
        return self.get(name).manifest.pool.size()

    def bundle_dir(self, image: str) -> Path | None:
        """Where the bundle of ``rock-env-<name>:<digest>`` lies, for runtimes without images."""
        if not image.startswith(IMAGE_PREFIX):
            return None
        name, _, digest = image.removeprefix(IMAGE_PREFIX).partition(":")
        directory = self.root / name / digest
        inside = directory.resolve().is_relative_to(self.root.resolve())
        return directory if digest and inside and directory.is_dir() else None

    @staticmethod
    def _spec(environment: Environment, bundle: Bundle | None) -> SandboxSpec:
        manifest = environment.manifest
        return SandboxSpec(
            image=bundle.image if bundle else "",
            env=manifest.name,
            entry=manifest.entry,
            python_path=(f"{INSIDE}/src", f"{INSIDE}/site"),
            environ={"ROCK_ENV_DATA": f"{INSIDE}/data"} | manifest.sandbox.environ,
            limits=manifest.limits.limits(),
            network=manifest.sandbox.network,
            egress=manifest.sandbox.egress,
            read_only=manifest.sandbox.read_only,
            user=manifest.sandbox.user,
        )

    def _loosened(self, environment: Environment, bundle: Bundle | None) -> tuple[str, ...]:
        """Of its own sandboxes, and of those of tasks with an image of their own."""
        spec = self._spec(environment, bundle)
        user = environment.manifest.task_images.user
        if bundle is None or not user or not task_images.read(bundle.directory):
            return spec.loosened
        return tuple(dict.fromkeys((*spec.loosened, *spec.model_copy(update={"user": user}).loosened)))

    def _directories(self) -> Iterator[tuple[Path, str]]:
        """Directories that hold an env.toml, each with its package if that is known."""
        search = self._search
        if search is None:
            search = [Path(part) for part in os.environ.get("ROCK_ENV_PATH", "").split(os.pathsep) if part]
        for root in search:
            root = root.expanduser().absolute()
            candidates = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
            for directory in candidates:
                if (directory / FILE).is_file():
                    yield directory, ""
        for point in importlib.metadata.entry_points(group="rock.envs"):
            directory_of = _package_directory(point.value)
            if directory_of is not None and (directory_of / FILE).is_file():
                yield directory_of, point.value


def _package_directory(package: str) -> Path | None:
    """Where a package lies, without running its code. (Of ``a.b`` Python itself imports ``a``; keep that empty.)"""
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _package_of(directory: Path, entry: str) -> str:
    """``a.counter`` for the directory ``counter`` of entry ``a.counter.env:Env``; empty for ``env:Env``."""
    parts = entry.partition(":")[0].split(".")
    if directory.name in parts:
        return ".".join(parts[: parts.index(directory.name) + 1])
    if (directory / f"{parts[0]}.py").is_file() or (directory / parts[0]).is_dir():
        return ""
    raise InvalidRequest(
        f"{directory / FILE}: entry {entry!r} names neither the directory {directory.name!r} nor a module in it",
        hint=f"Expected something like '{directory.name}.env:MyEnv'.",
    )


def _files(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        if path.name.startswith(".") or path.name in _LEFT_OUT or path.suffix in {".pyc", ".pyo"}:
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path

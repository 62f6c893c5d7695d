"""Builds an environment's bundle and, for Docker, its image. Blocking; seconds to minutes; tells every line."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from rock.domain.errors import ImageBuildFailed, StorageError
from rock.guest import env as env_protocol
from rock.runtimes import task_images
from rock.runtimes.bundles import Bundle, EnvCatalog, Environment
from rock.runtimes.docker import PYTHON
from rock.runtimes.images import build_image, docker_client, ensure_base_image, is_current

OnLine = Callable[[str], None]

_CAUSE_LINES = 25
_GENERATED_DOCKERFILE = "ARG BASE\nFROM ${BASE}\nCOPY bundle /opt/rock/env\n"


def build_environment(
    catalog: EnvCatalog,
    name: str,
    *,
    quick: bool = False,
    force: bool = False,
    image: bool = True,
    on_line: OnLine | None = None,
) -> Bundle:
    """Build what is missing and make it current. ``force`` builds again; ``image=False`` leaves Docker alone.

    A Dockerfile beside env.toml makes the image: it is given ``ARG BASE`` and finds the bundle as ``bundle/``.
    Raises NotFound, ImageBuildFailed (the last lines are its cause), StorageError, RuntimeUnavailable (no Docker).
    """
    say = on_line or (lambda _: None)
    environment = catalog.get(name)
    digest = environment.digest(quick=quick)
    folder = catalog.root / name
    target = folder / digest
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        if force or not target.is_dir():
            _build_bundle(catalog, environment, target, quick, say)
        else:
            say(f"The bundle {name}:{digest} is up to date.")
    bundle = Bundle(name, digest, quick, target)
    if image:
        _build_image(environment, bundle, force, say)
    with _disk_errors(folder):
        _write_current(folder, bundle)
    return bundle


def _build_bundle(catalog: EnvCatalog, environment: Environment, target: Path, quick: bool, say: OnLine) -> None:
    temporary = target.parent / f".build-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        _copy_sources(environment, temporary / "src")
        _install(catalog, environment, temporary / "site", say)
        (temporary / "data").mkdir()
        _prepare(environment, temporary, quick, say)
        task_images.read(temporary)
        _open_to_all(temporary)
        if target.is_dir():  # built before and forced, or by another process at the same time
            target.rename(temporary / ".replaced")
        temporary.rename(target)
        shutil.rmtree(target / ".replaced", ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"Built the bundle {environment.name}:{target.name}.")


def _open_to_all(directory: Path) -> None:
    """A sandbox reads its bundle as another user, whatever the umask of the one who built it."""
    for folder, _, names in os.walk(directory):
        os.chmod(folder, os.stat(folder).st_mode | 0o555)
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode | 0o444)


def _copy_sources(environment: Environment, src: Path) -> None:
    package = Path(*environment.package.split(".")) if environment.package else Path()
    for path in environment.sources():
        place = src / package / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(environment.directory / path, place)
    protocol = src / "rock" / "guest"
    protocol.mkdir(parents=True)
    shutil.copyfile(env_protocol.__file__, protocol / "env.py")
    for parent in (*package.parents, Path("rock"), Path("rock/guest")):
        if parent != Path() and not (src / parent / "__init__.py").exists():
            (src / parent / "__init__.py").touch()


def _install(catalog: EnvCatalog, environment: Environment, site: Path, say: OnLine) -> None:
    """Fill ``site``. What is optional comes second and replaces nothing; if it fails, that is said and all it does."""
    wanted = environment.manifest.bundle
    for name in filter(None, (wanted.requirements, wanted.optional_requirements)):
        if not (environment.directory / name).is_file():
            raise ImageBuildFailed(
                f"{environment.name}: there is no {environment.directory / name}", hint="Correct [bundle] in env.toml."
            )
    site.mkdir(parents=True)
    if wanted.requirements:
        _add(_installed(catalog, environment, wanted.requirements, say), site)
    if not wanted.optional_requirements:
        return
    try:
        _add(_installed(catalog, environment, wanted.optional_requirements, say), site)
    except ImageBuildFailed as error:
        lost = wanted.optional_for or f"what needs {wanted.optional_requirements}"
        say(f"Warning: {error.message}")
        say(f"Warning: {lost} will not work. Once it can be installed: rock env build {environment.name} --force")


def _installed(catalog: EnvCatalog, environment: Environment, requirements: str, say: OnLine) -> Path:
    """pip's work is kept by what was asked of it: an environment whose code changed is not installed again."""
    path = environment.directory / requirements
    key = hashlib.sha256(f"{PYTHON}\0".encode() + path.read_bytes()).hexdigest()[:12]
    kept = catalog.root / ".site" / key
    if not kept.is_dir():
        say(f"Installing {requirements} …")
        temporary = kept.parent / f".build-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        pip = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        pip += ["--progress-bar", "off", "--no-deps", "--target", str(temporary), "--requirement", str(path)]
        try:
            temporary.mkdir(parents=True)
            _run(pip, f"installing {requirements} of {environment.name}", say)
            with contextlib.suppress(FileExistsError, OSError):  # another build was quicker
                temporary.rename(kept)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return kept


def _add(kept: Path, site: Path) -> None:
    shutil.copytree(kept, site, copy_function=_link_or_copy, dirs_exist_ok=True)


def _prepare(environment: Environment, out: Path, quick: bool, say: OnLine) -> None:
    shipped = environment.directory / "tasks.json"
    if shipped.is_file():
        shutil.copyfile(shipped, out / "tasks.json")
    module = environment.manifest.bundle.prepare
    if module:
        say(f"Preparing with {module} …")
        argv = [sys.executable, "-m", module, "--out", str(out)] + (["--quick"] if quick else [])
        # -m puts the working directory on the path, and it must be the bundle's own code that runs.
        path = os.pathsep.join([str(out / "src"), str(out / "site")])
        _run(argv, f"preparing {environment.name}", say, cwd=out / "src", environ={"PYTHONPATH": path})
    try:
        tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
        well_formed = isinstance(tasks, dict) and all(isinstance(names, list) for names in tasks.values())
    except (OSError, ValueError):
        well_formed = False
    if not well_formed:
        raise ImageBuildFailed(
            f"{environment.name} has no tasks: expected tasks.json with {{split: [task, …]}}",
            hint=f"Let {module} write DIR/tasks.json." if module else "Put a tasks.json beside env.toml.",
        )


def _build_image(environment: Environment, bundle: Bundle, force: bool, say: OnLine) -> None:
    with docker_client(60.0) as api:
        if not force and is_current(api, bundle.image):
            say(f"The image {bundle.image} is up to date.")
            return
    base = ensure_base_image(on_line=say)
    build_image(
        bundle.image,
        environment.directory,
        dockerfile_text=dockerfile_of(environment),
        extra={"bundle": bundle.directory},
        build_args={"BASE": base},
        on_line=say,
    )
    say(f"Built the image {bundle.image}.")


def dockerfile_of(environment: Environment) -> str:
    """Its own, else one that only adds the bundle."""
    own = environment.directory / "Dockerfile"
    return own.read_text(encoding="utf-8") if own.is_file() else _GENERATED_DOCKERFILE


def _run(
    argv: Sequence[str], what: str, say: OnLine, *, cwd: Path | None = None, environ: dict[str, str] | None = None
) -> None:
    """Run to the end, telling every line. Raises ImageBuildFailed with the last ones.

    What it starts finds a plain ``python`` where ours has one beside it; Debian has none of that name elsewhere.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    tail: collections.deque[str] = collections.deque(maxlen=_CAUSE_LINES)
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env=os.environ | {"PATH": path} | (environ or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tail.append(line.rstrip())
                say(line.rstrip())
            code = process.wait()
        except BaseException:
            process.kill()  # also for Ctrl-C: pip must not go on without us
            raise
    if code != 0:
        raise ImageBuildFailed(
            f"{what} failed with exit code {code}: {tail[-1] if tail else 'no output'}",
            hint="The last lines of its output are below.",
            cause="\n".join(tail),
        )


def _write_current(folder: Path, bundle: Bundle) -> None:
    temporary = folder / f".current-{os.getpid()}"
    temporary.write_text(json.dumps({"digest": bundle.digest, "quick": bundle.quick, "python": PYTHON}))
    temporary.rename(folder / "current.json")


def _sweep(folder: Path) -> None:
    """Remove what builds left that were killed."""
    for path in (*folder.glob(".build-*"), *(folder.parent / ".site").glob(".build-*")):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:  # never write into it: it may be a link to what is kept for others
        pass
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write under {folder}: {error.strerror or error}",
            hint="Free some space or set ROCK_HOME to a directory that can be written.",
            cause=str(error),
        ) from error

"""docker-compose, in the version that is here, and images of everything made without a registry."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUILT = ("rock", "roll_core", "envs", "dashboard", "benchmarks", "recipes", "docker", "tools")
BUILD_S = 1800


def compose() -> list[str]:
    """The command; empty where there is none."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    v2 = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False) if _docker() else None
    return ["docker", "compose"] if v2 is not None and v2.returncode == 0 else []


def _docker() -> bool:
    return shutil.which("docker") is not None


@pytest.fixture(scope="session")
def compose_command() -> list[str]:
    if not (command := compose()):
        pytest.skip("neither docker-compose nor docker compose is installed ('apt-get install docker-compose')")
    return command


@dataclass(frozen=True)
class Stack:
    """A copy of the project with wheels beside it, and a compose project of its own."""

    directory: Path
    command: list[str]
    environ: dict[str, str]

    def __call__(self, *arguments: str, timeout_s: float = 300) -> str:
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=self.directory, env=self.environ, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return done.stdout

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.environ[f'ROCK_{service}']}"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, f"docker {arguments}: {done.stderr[-4000:]}"
    return done.stdout.strip()


def _base(name: str) -> str:
    """An image with Python and apt: the one that is named, or Debian by debootstrap."""
    if given := os.environ.get("ROCK_TEST_BASE"):
        return given
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip("no base image: name one (ROCK_TEST_BASE=python:3.11-slim) or install debootstrap and be root")
    with tempfile.TemporaryDirectory(prefix="rt-base-") as folder:
        include = "--include=python3,python3-pip,python3-dev,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", include, "bookworm", folder], check=True, capture_output=True
        )
        archive = Path(folder).with_suffix(".tar")
        try:
            subprocess.run(["tar", "-C", folder, "-cf", str(archive), "."], check=True)
            docker("import", str(archive), name)
        finally:
            archive.unlink(missing_ok=True)
    return name


def _wheels(target: Path) -> None:
    """All that the images need, this machine's torch included: builds then ask no registry."""
    if given := os.environ.get("ROCK_TEST_WHEELS"):
        shutil.copytree(given, target)
        return
    pip = [sys.executable, "-m", "pip", "download", "-q", "-d", str(target)]
    subprocess.run([*pip, "torch==2.13.0", f"{ROOT}[dashboard,train,postgres]", "setuptools>=77"], check=True)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def stack(compose_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Built and up; down, with images, volumes and state, at the end."""
    label = f"rt{uuid.uuid4().hex[:8]}"
    directory = tmp_path_factory.mktemp("compose")
    state = Path(tempfile.mkdtemp(prefix="rt-"))  # short: sockets lie in it
    images = {name: f"{label}-{name}:test" for name in ("base", "all", "postgres", "prometheus")}
    bundles = _bundle_images()
    built = {
        "ROCK_IMAGE": images["all"], "ROCK_TRAIN_IMAGE": images["all"], "ROCK_POSTGRES_IMAGE": images["postgres"],
        "ROCK_PROMETHEUS_IMAGE": images["prometheus"], "ROCK_EXTRAS": "dashboard,postgres,train",
        "ROCK_PACKAGES": "", "ROCK_TORCH": "torch==2.13.0", "ROCK_PIP_ARGS": "--no-index",
    }  # fmt: skip
    ports = {f"ROCK_{name}": _free_port() for name in ("PORT", "DASHBOARD_PORT", "PROMETHEUS_PORT")}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ROCK_", "COMPOSE_"))}
    places = {"ROCK_STATE": str(state), "ROCK_PROMETHEUS_CONFIG": "./prometheus-here"}
    environ = {**inherited, **built, **ports, **places, "COMPOSE_PROJECT_NAME": label, "DOCKER_BUILDKIT": "0"}
    up = Stack(directory, compose_command, environ)
    try:
        environ["ROCK_BASE"] = _base(images["base"])
        _copy_project(directory, ports["ROCK_PORT"])
        subprocess.run(["tools/compose-secrets.sh"], cwd=directory, check=True, capture_output=True)
        up("build", "-q", "database", "platform", "prometheus", timeout_s=BUILD_S)
        shutil.rmtree(directory / "docker/wheels")
        up("up", "-d", timeout_s=BUILD_S)
        yield up
    finally:
        _remove(up, [*images.values(), *(_bundle_images() - bundles)], state)


def _copy_project(directory: Path, port: str) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "wheels", "ca-bundle.crt")
    for name in BUILT:
        shutil.copytree(ROOT / name, directory / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "docker-compose.yml", ".dockerignore"):
        shutil.copy(ROOT / name, directory / name)
    _wheels(directory / "docker/wheels")
    shutil.copytree(ROOT / "docker/prometheus", directory / "prometheus-here")
    config = directory / "prometheus-here/compose.yml"
    quick = config.read_text().replace("127.0.0.1:7625", f"127.0.0.1:{port}").replace("10s", "5s")
    config.write_text(quick)


def _bundle_images() -> set[str]:
    return set(docker("images", "--format", "{{.Repository}}:{{.Tag}}", "rock-env-arithmetic").split()) - {""}


def _remove(up: Stack, images: list[str], state: Path) -> None:
    tidy: list[Callable[[], object]] = [
        lambda: up("--profile", "train", "down", "-v", "--remove-orphans"),
        *[lambda image=image: docker("rmi", "-f", image) for image in images if _is_there(image)],
        lambda: shutil.rmtree(state),
    ]
    failures = []
    for step in tidy:
        try:
            step()
        except (AssertionError, OSError) as error:  # the rest must go all the same
            failures.append(error)
    assert not failures


def _is_there(image: str) -> bool:
    return bool(docker("images", "-q", image))

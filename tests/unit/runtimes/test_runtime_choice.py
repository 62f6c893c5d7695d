"""Which runtime is used, and what is said where none can be."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path

import pytest

from rock.domain.errors import InvalidRequest, RuntimeUnavailable
from rock.runtimes import docker_daemon as docker_module
from rock.runtimes.docker_daemon import check_docker
from rock.runtimes.select import choose_runtime
from rock.runtimes.shared import guest_argv, socket_path, user_of
from rock.wire.models import SandboxSpec


def test_no_socket_and_no_dockerd_means_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_module.shutil, "which", lambda _: None)
    found = check_docker(f"unix://{tmp_path}/docker.sock")
    assert not found.ok
    assert "not installed" in found.detail
    assert "apt-get install docker.io" in found.remedy


def test_a_socket_that_nobody_serves_means_not_running() -> None:
    path = tempfile.mktemp(prefix="rd-", dir="/tmp")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    try:
        found = check_docker(f"unix://{path}")
    finally:
        os.unlink(path)
    assert not found.ok
    assert "daemon does not answer" in found.detail
    assert "Start it" in found.remedy


def test_a_closed_socket_means_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as mine:
        path = tempfile.mktemp(prefix="rd-", dir="/tmp")
        mine.bind(path)
        monkeypatch.setattr(docker_module.os, "access", lambda *_: False)
        found = check_docker(f"unix://{path}")
        os.unlink(path)
    assert "permission denied" in found.detail
    assert "usermod -aG docker" in found.remedy


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="podman"):
        asyncio.run(choose_runtime("podman", "i", tmp_path))


def test_where_nothing_works_every_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailable) as refused:
        asyncio.run(choose_runtime("auto", "i", tmp_path))
    assert "docker.io" in refused.value.hint
    assert "bubblewrap" in refused.value.hint


def test_the_fake_is_only_had_by_name(tmp_path: Path) -> None:
    async def main() -> None:
        runtime, why = await choose_runtime("fake", "i", tmp_path)
        assert runtime.name == "fake"
        assert "no isolation" in why
        await runtime.destroy()  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_socket_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="shorter ROCK_HOME"):
        socket_path(Path("/tmp") / ("x" * 100))


def test_users_are_numbers() -> None:
    assert user_of(SandboxSpec(image="x", user="5:6")) == (5, 6)
    assert user_of(SandboxSpec(image="x", user="5")) == (5, 5)
    assert user_of(SandboxSpec(image="x", user="root")) == (0, 0)
    assert 0 not in user_of(SandboxSpec(image="x")) or os.geteuid() != 0
    with pytest.raises(InvalidRequest):
        user_of(SandboxSpec(image="x", user="bob"))


def test_the_guest_is_told_its_environment() -> None:
    spec = SandboxSpec(image="x", entry="a.b:C", python_path=("/p", "/q"))
    assert guest_argv(spec)[-4:] == ["--entry", "a.b:C", "--python-path", "/p:/q"]
    assert "--entry" not in guest_argv(SandboxSpec(image="x"))

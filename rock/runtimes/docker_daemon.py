"""The Docker daemon: a client of it, whether it answers and why not, and its errors in our vocabulary. Blocking."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import requests
from docker.api import APIClient
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from rock.domain.errors import InvalidRequest, RockError, RuntimeUnavailable
from rock.runtimes.base import Availability

T = TypeVar("T")

# More calls at once do not make the daemon start containers any quicker (2.5-5.5 a second on two cores).
THREADS = 8
CALL_TIMEOUT_S = 60.0


def new_client(base_url: str | None, timeout_s: float | None) -> APIClient:
    settings = kwargs_from_env()
    if base_url:
        settings["base_url"] = base_url
    return APIClient(version="auto", timeout=timeout_s, num_pools=THREADS, **settings)


def translated(function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, with Docker's errors in our vocabulary."""
    try:
        return function(*args)
    except RockError:
        raise
    except APIError as error:
        text = str(error.explanation or error)
        if error.is_client_error():
            raise InvalidRequest(f"Docker refuses: {text}", cause=str(error)) from error
        raise RuntimeUnavailable(f"Docker failed: {text}", hint="Try: rock doctor", cause=str(error)) from error
    except requests.Timeout as error:
        raise RuntimeUnavailable(
            f"Docker did not answer within {CALL_TIMEOUT_S:g} s", hint="Try: rock doctor", cause=str(error)
        ) from error
    except (DockerException, requests.RequestException) as error:
        found = check_docker()
        raise RuntimeUnavailable(
            f"Docker cannot be used: {found.detail if not found.ok else error}", hint=found.remedy, cause=str(error)
        ) from error


def check_docker(base_url: str | None = None) -> Availability:
    """Whether the daemon answers; if not, which of the usual reasons it is. Blocking, at most 5 s."""
    host = base_url or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        client = new_client(base_url, 5.0)
    except (DockerException, requests.RequestException, OSError) as error:
        return _why_not(host, error)
    try:
        version = client.version()
        return Availability(True, f"Docker {version.get('Version', '?')}")
    except (DockerException, requests.RequestException, OSError) as error:
        return _why_not(host, error)
    finally:
        client.close()


def _why_not(host: str, error: Exception) -> Availability:
    if not host.startswith("unix://"):
        return Availability(False, f"no Docker daemon answers at {host}: {error}", "Check DOCKER_HOST.")
    path = Path(host.removeprefix("unix://"))
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except PermissionError:
        return _no_permission(path)
    except OSError:
        is_socket = False
    if is_socket and not os.access(path, os.W_OK):
        return _no_permission(path)
    if shutil.which("dockerd") is None and not is_socket:
        return Availability(
            False,
            f"Docker is not installed (no dockerd, no socket {path})",
            "Install it: sudo apt-get install docker.io    (or see https://docs.docker.com/engine/install)",
        )
    start = "sudo systemctl start docker" if Path("/run/systemd/system").is_dir() else "sudo dockerd &"
    return Availability(False, f"Docker is installed but its daemon does not answer at {path}", f"Start it: {start}")


def _no_permission(path: Path) -> Availability:
    return Availability(
        False,
        f"permission denied on Docker's socket {path}",
        "Join its group and log in again: sudo usermod -aG docker $USER",
    )

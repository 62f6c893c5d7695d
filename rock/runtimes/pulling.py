"""Images from a registry: fetched with their progress told, within a time, and a clear word when that fails. Blocking.

A registry that says nothing for ``_SILENCE_S``, and a pull that takes longer than ``$ROCK_PULL_TIMEOUT_S`` (1,800 s),
is given up; Docker keeps the layers that came whole, so the next try goes on from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import requests
from docker.errors import DockerException

from rock.domain.errors import ImageNotFound, InvalidRequest
from rock.runtimes.docker_daemon import new_client

OnLine = Callable[[str], None]

TIMEOUT_VARIABLE = "ROCK_PULL_TIMEOUT_S"
_TIMEOUT_S = 1800.0
_SILENCE_S = 60.0
_TELL_EVERY_S = 2.0


def pull(image: str, say: OnLine) -> None:
    """Fetch it, whether or not it is here. Raises ImageNotFound naming it and what to do, InvalidRequest."""
    limit_s = pull_timeout_s()
    repository, tag = split(image)
    api = new_client(None, _SILENCE_S)
    try:
        _follow(image, api.pull(repository, tag=tag, stream=True, decode=True), say, limit_s)
    except (DockerException, requests.RequestException) as error:
        raise _refused(image, str(getattr(error, "explanation", None) or error)) from error
    finally:
        api.close()


def split(image: str) -> tuple[str, str]:
    """Repository and tag; ``host:5000/name`` has no tag but a port."""
    if ":" in image.rpartition("/")[2]:
        repository, _, tag = image.rpartition(":")
        return repository, tag
    return image, "latest"


def pull_timeout_s() -> float:
    """Raises InvalidRequest when the variable holds no number above 0."""
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else _TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InvalidRequest(f"{TIMEOUT_VARIABLE} is {text!r}", hint="Expected seconds, such as 1800, or leave it out.")
    return seconds


def _follow(image: str, events: Iterable[dict[str, Any]], say: OnLine, limit_s: float) -> None:
    began = told = time.monotonic()
    layers: dict[str, tuple[int, int]] = {}
    for event in events:
        if "error" in event:
            raise _refused(image, str(event["error"]))
        detail = event.get("progressDetail") or {}
        if event.get("status") == "Downloading" and detail.get("total"):
            layers[str(event.get("id"))] = (int(detail.get("current", 0)), int(detail["total"]))
        now = time.monotonic()
        if now - began > limit_s:
            raise _refused(image, f"it was not here after {limit_s:g} s ({TIMEOUT_VARIABLE})")
        if now - told >= _TELL_EVERY_S:
            told = now
            say(_progress(image, layers, now - began))


def _progress(image: str, layers: dict[str, tuple[int, int]], elapsed_s: float) -> str:
    have, total = (sum(counts) / 1e6 for counts in zip(*layers.values(), strict=True)) if layers else (0.0, 0.0)
    return f"pulling {image}: {have:.0f} of {total:.0f} MB known of, {elapsed_s:.0f} s"


def _refused(image: str, why: str) -> ImageNotFound:
    return ImageNotFound(
        f"{image} is not on this machine and cannot be fetched: {why}",
        hint="Check its name and that the registry can be reached, load it from a file (docker load), "
        "or build it: rock image build",
        cause=why,
    )

"""The base image made without a registry: what it holds, and when it is made again."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Iterator

import pytest
from docker.api import APIClient

from rock.runtimes import images
from rock.runtimes.rootfs import recipe

pytestmark = pytest.mark.docker

# What numpy, Fast Downward and other wheels with compiled parts ask the loader for by name.
LIBRARIES = ("libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libstdc++.so.6", "libz.so.1")


@pytest.fixture
def docker() -> Iterator[APIClient]:
    with images.docker_client(120.0) as api:
        yield api


@pytest.fixture
def base_tag(docker: APIClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name of the test's own, so that nobody else's base image is replaced."""
    tag = f"rock-base:test-{uuid.uuid4().hex[:8]}"
    monkeypatch.setattr(images, "BASE_TAG", tag)
    yield tag
    if images.has_image(docker, tag):
        docker.remove_image(tag, force=True)


def make(docker: APIClient, tag: str, *changes: str) -> str:
    """An image of next to nothing; returns its id."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    name, _, version = tag.partition(":")
    docker.import_image_from_data(data.getvalue(), repository=name, tag=version, changes=list(changes))
    return str(docker.inspect_image(tag)["Id"])


def test_one_of_another_recipe_is_made_again_and_holds_what_wheels_need(docker: APIClient, base_tag: str) -> None:
    outdated = make(docker, base_tag, f"LABEL {images.LABEL_RECIPE}=older")
    assert not images.is_current(docker, base_tag)
    said: list[str] = []
    assert images.ensure_base_image(on_line=said.append) == base_tag
    assert any("another recipe" in line for line in said)
    assert images.is_current(docker, base_tag)
    assert not images.has_image(docker, outdated)
    assert docker.inspect_image(base_tag)["Config"]["Labels"] == {images.LABEL_RECIPE: recipe()}
    script = f"import ctypes\nfor name in {LIBRARIES!r}: ctypes.CDLL(name)\nprint('loaded')"
    container = docker.create_container(base_tag, ["python3", "-c", script])["Id"]
    try:
        docker.start(container)
        docker.wait(container, timeout=60)
        assert docker.logs(container) == b"loaded\n"
    finally:
        docker.remove_container(container, force=True)


def test_somebody_elses_is_kept(docker: APIClient, base_tag: str) -> None:
    before = make(docker, base_tag)
    assert images.ensure_base_image() == base_tag
    assert docker.inspect_image(base_tag)["Id"] == before

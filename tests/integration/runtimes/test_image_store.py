"""Images with names of the test's own: named by content, removed, evicted by last use, fetched."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rock.domain.errors import Conflict, ImageNotFound
from rock.runtimes import image_store, images
from rock.runtimes.image_uses import note_use, used_at_s

pytestmark = pytest.mark.docker


def quiet(_: str) -> None: ...


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / f"tools-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")
    (folder / "data").write_bytes(os.urandom(1_000_000))
    yield folder
    with images.docker_client(60.0) as api:
        for image in api.images():
            for tag in image.get("RepoTags") or ():
                if tag.startswith(folder.name):
                    api.remove_image(tag, force=True)


def build(context: Path) -> str:
    tag, known = image_store.content_tag(context, quiet)
    if not known:
        images.build_image(tag, context)
    return tag


def test_the_name_follows_the_content_and_nothing_else(context: Path) -> None:
    first = build(context)
    assert image_store.content_tag(context, quiet) == (first, True)
    os.utime(context / "data", (1, 1))
    assert image_store.content_tag(context, quiet) == (first, True)
    (context / "data").write_bytes(b"other")
    other, known = image_store.content_tag(context, quiet)
    assert (other != first, known) == (True, False)


def test_the_longest_unused_goes_first_and_the_used_one_stays(
    context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    old = build(context)
    (context / "data").write_bytes(os.urandom(1_000_000))
    new = build(context)
    note_use(home, old)
    note_use(home, new)
    os.utime(home / "image-uses" / new.replace(":", "_"), (9e9, 9e9))
    os.utime(home / "image-uses" / old.replace(":", "_"), (8e9, 8e9))
    assert used_at_s(home, new) == 9e9
    all_of_them = image_store.stored_images

    def mine(home: Path) -> list[image_store.StoredImage]:
        """Those of other tests come and go meanwhile."""
        return [image for image in all_of_them(home) if image.tag in (old, new)]

    monkeypatch.setattr(image_store, "stored_images", mine)
    assert [image.tag for image in mine(home)] == [old, new]
    total = sum(image.own_bytes for image in mine(home))
    assert image_store.evict(home, total - 1, spared=[old, new]) == []
    assert [one.tag for one in image_store.evict(home, total - 1, dry_run=True)] == [old]
    assert [one.tag for one in image_store.evict(home, total - 1)] == [old]
    assert [image.tag for image in mine(home)] == [new]


def test_one_that_a_container_stands_on_is_refused(context: Path) -> None:
    tag = build(context)
    with images.docker_client(60.0) as api:
        container = api.create_container(tag, command="none")["Id"]
        try:
            with pytest.raises(Conflict, match="in use"):
                image_store.remove(tag)
        finally:
            api.remove_container(container)
    image_store.remove(tag)
    with pytest.raises(ImageNotFound, match=tag):
        image_store.remove(tag)


def test_what_is_here_is_not_fetched_and_what_is_nowhere_is_named(context: Path) -> None:
    assert image_store.prefetch(build(context), quiet) is False
    with pytest.raises(ImageNotFound, match=r"localhost:1/nowhere:1 is not on this machine and cannot be fetched"):
        image_store.prefetch("localhost:1/nowhere:1", quiet)

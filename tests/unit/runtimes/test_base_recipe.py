"""When a base image that was made before will do."""

from __future__ import annotations

import sys

import pytest

from rock.runtimes.rootfs import recipe


def test_patch_releases_of_one_python_share_a_base_image(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for version, text in [((3, 12, 1), "3.12.1 (gcc 12)"), ((3, 12, 9), "3.12.9 (gcc 13)"), ((3, 13, 0), "3.13.0")]:
        monkeypatch.setattr(sys, "version_info", (*version, "final", 0))
        monkeypatch.setattr(sys, "version", text)
        found.add(recipe())
    assert len(found) == 2

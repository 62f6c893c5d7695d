"""The adapters that docs/environments.md shows, with the real packages: run where `openenv-core`, or `verifiers`, is
installed; neither is among our own requirements."""

from __future__ import annotations

from pathlib import Path

import pytest

ENVS = Path(__file__).parents[2] / "fixtures" / "envs"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ENVS))


def test_an_environment_of_openenv() -> None:
    pytest.importorskip("openenv.core")
    from adapted_openenv.env import Adapted

    env = Adapted()
    assert env.reset("hello", 0, {}) == ("Say 'hello'.", {})
    assert env.step("bye") == ("bye", 0.0, False, False, {})
    assert env.step({"txt": "hello"})[4] == {"is_action_valid": False}
    assert env.step({"text": "hello"}) == ("hello", 1.0, True, False, {"success": True})


def test_a_taskset_of_verifiers() -> None:
    pytest.importorskip("verifiers.v1")
    from adapted_verifiers.env import Adapted

    env = Adapted()
    assert env.reset("3", 0, {}) == ("What is 3 + 3?", {})
    assert env.step("7") == ("", 0.0, True, False, {"success": False})
    env.reset("3", 0, {})
    assert env.step("6") == ("", 1.0, True, False, {"success": True})
    with pytest.raises(RuntimeError, match="reset first"):
        env.step("6")

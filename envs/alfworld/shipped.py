"""The engine as shipped: TextWorld, Fast Downward and ALFWorld's wrappers, kept as the oracle of the fast engine.

Imported only when asked for (``engine="textworld"``, the tests, the benchmark): it needs the compiled packages of
``requirements-optional.txt``. Nothing is memoised here, on purpose.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, Protocol

from envs.alfworld.world import GameTexts


class Episode(Protocol):
    """What the fast engine and the shipped one have in common."""

    @property
    def won(self) -> bool: ...

    def intro(self) -> str: ...

    def admissible(self) -> list[str]: ...

    def step(self, command: str) -> str: ...


def missing() -> str:
    """Why the shipped engine cannot run here; empty if it can."""
    try:
        _imports()
    except (ImportError, OSError) as error:  # OSError: a shared library that does not fit this machine
        return f"{type(error).__name__}: {error}"
    return ""


def _imports() -> tuple[Any, Any, list[Any]]:
    _stand_in_for_jericho()
    # alfworld makes a folder in the user's home unless told where; a sandbox may have no writable home.
    os.environ.setdefault("ALFWORLD_DATA", tempfile.gettempdir())
    import textworld
    import textworld.gym
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos

    return textworld, textworld.gym, [AlfredDemangler, AlfredInfos]


def _stand_in_for_jericho() -> None:
    """TextWorld imports jericho, a C library for Z-machine games, which PDDL games never touch: its name will do."""
    if "jericho" in sys.modules or importlib.util.find_spec("jericho") is not None:
        return
    module = types.ModuleType("jericho")
    for name in ("UnsupportedGameWarning", "TruncatedInputActionWarning"):  # read when TextWorld is imported
        setattr(module, name, UserWarning)
    sys.modules["jericho"] = module


def game_file(texts: GameTexts) -> dict[str, Any]:
    """The contents of an official ``game.tw-pddl``."""
    return {
        "pddl_domain": texts.domain,
        "grammar": texts.grammar,
        "pddl_problem": texts.problem,
        "walkthrough": list(texts.plan) or None,
        "solvable": True,
    }


class ShippedPlay:
    """An episode of the shipped engine, started the way ``AlfredTWEnv`` starts it."""

    def __init__(self, path: Path) -> None:
        textworld, _, (demangler, infos) = _imports()
        argv = sys.argv
        request = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
        try:
            self._env = textworld.start(str(path), request, wrappers=[demangler(shuffle=False), infos])
            self._state = self._env.reset()
        finally:
            sys.argv = argv  # Fast Downward's translator overwrites it
        self.won = bool(self._state.won)

    @classmethod
    def from_texts(cls, texts: GameTexts) -> ShippedPlay:
        with tempfile.TemporaryDirectory(prefix="alfworld-") as folder:
            path = Path(folder) / "game.tw-pddl"
            path.write_text(json.dumps(game_file(texts)))
            return cls(path)

    def intro(self) -> str:
        return str(self._state.feedback)

    def admissible(self) -> list[str]:
        return list(self._state.admissible_commands)

    def step(self, command: str) -> str:
        self._state, _, _ = self._env.step(command)
        self.won = bool(self._state.won)
        return str(self._state.feedback)

    def plan(self) -> list[str]:
        """Fast Downward's plan from the present state. May take very long: call it in a process of its own."""
        env = self._env.unwrapped
        return [command.strip() for command in env._pddl_state.replan(env._entity_infos)]

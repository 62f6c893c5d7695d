"""Answers every action at once with the same observation; no episode ends by itself."""

from typing import Any

from rock.guest.env import Env


class NoopEnv(Env):
    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return "ready", {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return "ok", 0.0, False, False, {}

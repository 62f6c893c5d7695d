"""Two doors in a row, or as many as an option says: the task names the colour to say. Plays in microseconds."""

from __future__ import annotations

from typing import Any

COLOURS = ("red", "green", "blue")


played = 0
break_every = 0
"""Every so many steps of all environments together one breaks, as a bug in a task's code would; 0: none."""


class Doors:
    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self.task = task
        self.opened = 0
        self.doors = int(options.get("doors", 2))
        return f"open {task}", {"admissible_commands": list(COLOURS)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        global played
        played += 1
        if break_every and played % break_every == 0:
            raise RuntimeError("the lock is jammed")
        if action != self.task:
            return "wrong", 0.0, True, False, {"success": False}
        self.opened += 1
        won = self.opened == self.doors
        return "open", float(won), won, False, {"success": won} if won else {}

    def call(self, method: str, args: dict[str, Any]) -> Any:
        if method == "expert_plan":
            return [self.task] * self.doors
        raise LookupError(method)

    def close(self) -> None:
        pass

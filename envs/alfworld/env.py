"""ALFWorld as an environment of the platform: household tasks played by text commands.

Standard library only, unless the shipped engine is asked for. Options of ``reset``: ``max_steps`` (50), ``engine``
(``"fast"`` or ``"textworld"``: same traces, the second 100 times slower), ``admissible`` (True; False leaves the
commands out of ``info``). The reward is 1 on success and 0 otherwise. A game is deterministic: the seed changes
nothing, and is part of the protocol only.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from envs.alfworld.downward import TIME_LIMIT_S, downward_plan
from envs.alfworld.engine import Game
from envs.alfworld.planner import plan, wins
from envs.alfworld.seeker import seek
from envs.alfworld.shipped import Episode, ShippedPlay, missing
from envs.alfworld.store import Store
from envs.alfworld.world import GameTexts
from rock.guest.env import Env, StepResult

MAX_STEPS = 50
ENGINES = ("fast", "textworld")
_GAMES_KEPT = 32  # a game takes about 1 MiB; a GRPO group plays the same one many times


class AlfworldEnv(Env):
    """Tasks: ``train/000123``, ``heldout_seen/0007``, ``heldout_unseen/0042``, ``official/<split>/<game>/<trial>``."""

    def __init__(self, data: str | Path | None = None) -> None:
        folder = data or os.environ.get("ROCK_ENV_DATA")
        official = os.environ.get("ALFWORLD_DATA")
        self._store = Store(Path(folder) if folder else None, Path(official) if official else None)
        self._games: OrderedDict[str, tuple[GameTexts, Game]] = OrderedDict()
        self._play: Episode | None = None
        self._task = ""
        self._steps = 0
        self._max_steps = MAX_STEPS
        self._with_admissible = True

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Start the game ``task``. KeyError for an unknown task, ValueError for an option out of range."""
        engine, max_steps = options.get("engine", "fast"), options.get("max_steps", MAX_STEPS)
        if engine not in ENGINES:
            raise ValueError(f"Unknown engine {engine!r}; expected one of {', '.join(ENGINES)}.")
        if type(max_steps) is not int or max_steps < 1:
            raise ValueError(f"max_steps is {max_steps!r}; expected a whole number from 1.")
        texts, game = self._load(task)
        if engine == "textworld":
            if reason := missing():
                raise RuntimeError(f"engine='textworld' cannot run here ({reason.strip()}); engine='fast' can.")
            self._play = ShippedPlay.from_texts(texts)
        else:
            self._play = game.start()
        self._task, self._steps, self._max_steps = task, 0, max_steps
        self._with_admissible = bool(options.get("admissible", True))
        info = self._info() | {"task_type": texts.task_type, "goal": texts.goal, "max_steps": max_steps}
        return self._play.intro(), info

    def step(self, action: Any) -> StepResult:
        """Do the command ``action``. What is not admissible answers ``Nothing happens.`` and costs a step.

        ``info["is_action_valid"]`` says whether it was admissible.
        """
        play = self._playing()
        if play.won or self._steps >= self._max_steps:
            raise RuntimeError(f"The episode of {self._task!r} is over; call reset before the next step.")
        command = action if isinstance(action, str) else str(action)
        valid = command.strip() in play.admissible()
        observation = play.step(command)
        self._steps += 1
        truncated = not play.won and self._steps >= self._max_steps
        info = self._info() | {"is_action_valid": valid}
        if play.won or truncated:
            info["success"] = play.won
        return observation, float(play.won), play.won, truncated, info

    def call(self, method: str, args: dict[str, Any]) -> Any:
        """Beside the episode: ``admissible`` (the commands now), ``tasks`` (all, by split), and ``expert_plan``.

        ``expert_plan`` lists commands that win the game from its start. ``planner`` is ``"oracle"`` (default: shortest,
        sees into closed receptacles), ``"seeker"`` (looks for things in an ``order``, ``"shuffled"`` by ``seed`` or as
        ``"listed"``; empty if that takes more than ``max_steps``) or ``"fast-downward"`` (an oracle too;
        ``time_limit_s``). ``task`` defaults to the present one.
        """
        if method == "expert_plan":
            return self._expert_plan(**{"task": self._task, **args})
        if method == "admissible":
            return self._playing().admissible()
        if method == "tasks":
            return self._store.tasks()
        raise LookupError(f"Unknown method {method!r}; expected expert_plan, admissible or tasks.")

    def _info(self) -> dict[str, Any]:
        return {"admissible_commands": self._playing().admissible()} if self._with_admissible else {}

    def _playing(self) -> Episode:
        if self._play is None:
            raise RuntimeError("No episode: call reset first.")
        return self._play

    def _load(self, task: str) -> tuple[GameTexts, Game]:
        if task not in self._games:
            texts = self._store.texts(task)
            self._games[task] = (texts, Game(texts.domain, texts.grammar, texts.problem))
            if len(self._games) > _GAMES_KEPT:
                self._games.popitem(last=False)
        self._games.move_to_end(task)
        return self._games[task]

    def _expert_plan(
        self,
        task: str,
        planner: str = "oracle",
        seed: int = 0,
        order: str = "shuffled",
        max_steps: int = MAX_STEPS,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> list[str]:
        texts, game = self._load(task)
        if planner == "seeker":
            return list(seek(game, texts.task_type, texts.params, seed, max_steps, order))
        if planner == "fast-downward":
            return list(downward_plan(texts, time_limit_s))
        if planner != "oracle":
            raise ValueError(f"Unknown planner {planner!r}; expected oracle, seeker or fast-downward.")
        # A walkthrough from elsewhere may name things otherwise: trust it only if it wins.
        if texts.plan and wins(game, texts.plan):
            return list(texts.plan)
        return list(plan(game, texts.task_type, texts.params))

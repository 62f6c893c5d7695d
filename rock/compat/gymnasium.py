"""Environments in sandboxes as Gymnasium environments: ``gymnasium.make("rock/alfworld-v0", …)``.

``import rock.compat.gymnasium`` registers every environment that the platform's catalogue knows by name; one that is
added later is registered by :func:`register`. Observations and actions are text as the environment gives and takes it;
``reset(seed=…)`` decides the episode together with the task.

Invariants: an environment holds one sandbox from its first ``reset`` until ``close``; a failure of the platform is
raised, never turned into an observation or a reward; a lost sandbox is replaced as in any session.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import gymnasium
from gymnasium import spaces

from rock.domain.errors import InvalidRequest
from rock.sdk import EnvSessionSync, RockSync

ENTRY_POINT = "rock.compat.gymnasium:RockEnv"


class _Anything(spaces.Space[Any]):
    """Whatever JSON the environment gives. Sampling gives text; anything belongs to it."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "look"

    def contains(self, x: Any) -> bool:
        return isinstance(x, (str, int, float, bool, list, dict, type(None)))


class RockEnv(gymnasium.Env[Any, Any]):
    """One environment of a platform.

    Args:
        name: of the environment, such as ``alfworld``.
        task: id of a task; empty draws one of ``split`` at each reset, by its seed. ``reset(options={"task": …})``
            names one for that episode.
        split: which tasks are drawn from.
        url, key: of the platform; default as for :class:`rock.sdk.Rock`.
        settings: passed to :meth:`rock.sdk.Rock.env`, such as ``step_timeout_s``.

    Raises what :class:`rock.sdk.EnvSession` raises; ResetNeeded of Gymnasium's wrapper before the first reset.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        name: str,
        task: str = "",
        split: str = "train",
        url: str | None = None,
        key: str | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise InvalidRequest(f"render_mode is {render_mode!r}, expected None or 'ansi'.")
        self.render_mode = render_mode
        self.observation_space: spaces.Space[Any] = _Anything()
        self.action_space: spaces.Space[Any] = _Anything()
        self._name, self._task, self._split = name, task, split
        self._tasks: tuple[str, ...] = ()
        self._settings = settings
        self._rock = RockSync(url, key)
        self._session: EnvSessionSync | None = None
        self._shown: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode. Without a seed each reset draws another from the environment's own generator."""
        super().reset(seed=seed)
        chosen = dict(options or {})
        task = str(chosen.pop("task", self._task)) or self._draw()
        if seed is None:
            seed = int(self.np_random.integers(0, 2**31))
        if self._session is None:
            session = self._rock.env(self._name, task=task, seed=seed, options=chosen, **self._settings)
            session.open()
            self._session = session
        self._shown, info = self._session.reset(task, seed, chosen)
        return self._shown, {**info, "task": task, "seed": seed}

    def _draw(self) -> str:
        """Empty where the environment has no tasks to choose from."""
        if not self._tasks:
            self._tasks = tuple(self._rock.tasks(self._name, self._split).tasks)
        return self._tasks[int(self.np_random.integers(len(self._tasks)))] if self._tasks else ""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Raises InvalidRequest before the first reset."""
        if self._session is None:
            raise InvalidRequest("step before the first reset.", hint="Call reset() first.")
        self._shown, reward, terminated, truncated, info = self._session.step(action)
        return self._shown, reward, terminated, truncated, info

    def render(self) -> Any:
        """The latest observation as text, under ``render_mode="ansi"``."""
        return str(self._shown) if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Give the sandbox back. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._rock.close()


def register(name: str) -> str:
    """Make ``rock/NAME-v0`` known to Gymnasium; its id. Again, it does nothing."""
    env_id = f"rock/{name}-v0"
    if env_id not in gymnasium.registry:
        # Text environments are played as they are: the checker expects spaces that it can enumerate.
        gymnasium.register(env_id, entry_point=ENTRY_POINT, kwargs={"name": name}, disable_env_checker=True)
    return env_id


def register_all() -> list[str]:
    """Every environment that is installed, found without importing it."""
    return [register(point.name) for point in entry_points(group="rock.envs")]


register_all()

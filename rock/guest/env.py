"""The protocol an environment implements. Standard library only, Python 3.8+.

An environment is a class named by the ``entry`` of its ``env.toml``. The guest makes one instance in a process of its
own and calls it from one thread. Anything it raises ends the episode as *void*, never as reward 0; an action that the
agent got wrong is no error but an ordinary step (say so in the observation).
"""

from typing import Any, Dict, Tuple

StepResult = Tuple[Any, float, bool, bool, Dict[str, Any]]


class Env:
    """Base class; subclassing is optional, the methods are what counts."""

    def reset(self, task: str, seed: int, options: Dict[str, Any]) -> Tuple[Any, Dict[str, Any]]:
        """Start the episode of ``task``; the same (task, seed, options) must give the same episode.

        Returns (observation, info), both JSON-serialisable. Raise KeyError for an unknown task.
        """
        raise NotImplementedError

    def step(self, action: Any) -> StepResult:
        """(observation, reward, terminated, truncated, info), as in Gymnasium.

        ``info["success"]`` is a bool on the last step.
        """
        raise NotImplementedError

    def call(self, method: str, args: Dict[str, Any]) -> Any:
        """Anything beside the episode, such as demonstrations. Raise LookupError for an unknown method."""
        raise LookupError(method)

    def close(self) -> None:
        """Called once before the process ends, when it ends in order."""


class SnapshotEnv(Env):
    """For ``recovery = "snapshot"``: an environment whose state lies in files, which a snapshot of the sandbox keeps.

    Kept is what is written to the root (``/var/tmp``, say); not ``/tmp``, which is memory, nor any process.
    """

    def checkpoint(self) -> Any:
        """Called between two steps, before the files are kept: write out what is in memory only, close or flush files.

        Returns what ``restore`` needs beside the files: JSON, at most 256 KiB. Called right after ``restore`` it must
        return the same again: that is how the platform sees that the episode is where it was.
        """
        raise NotImplementedError

    def restore(self, task: str, seed: int, options: Dict[str, Any], state: Any) -> None:
        """Instead of ``reset``, in a new process over the kept files: be where ``checkpoint`` returned ``state``."""
        raise NotImplementedError

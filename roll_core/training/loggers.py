"""A run's metrics elsewhere: TensorBoard event files, Weights & Biases, and OpenTelemetry traces of its episodes.

Invariants: a logger never blocks or ends a run: what it raises is logged once and the logger is left out from then on;
the run's own ``metrics.jsonl`` and ``episodes.jsonl`` stay the record. The libraries are optional (extras ``loggers``
and ``otel``) and asked for by name in the recipe, so a missing one is an error before anything is started.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rock.sdk import RunStatus
from roll_core.config import Recipe, to_yaml
from roll_core.errors import RecipeError
from roll_core.rollout.work import Booking
from roll_core.training.reporting import Phase, Reporter

log = logging.getLogger(__name__)


class Logger(Protocol):
    """Each may raise."""

    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def summary(self, summary: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class FollowsEpisodes(Protocol):
    """A logger that also wants to know what became of episodes and of the weights they made."""

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None: ...

    def published(self, version: int) -> None: ...


class TensorBoardReporter:
    """Scalars under ``DIR/tensorboard``; `tensorboard --logdir DIR` shows them."""

    def __init__(self, directory: Path, recipe: Recipe) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"))
        self._writer.add_text("recipe", f"```yaml\n{to_yaml(recipe)}\n```")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def summary(self, summary: dict[str, Any]) -> None:
        self._writer.add_text("summary", f"```\n{summary}\n```")

    def close(self) -> None:
        self._writer.close()


class WandbReporter:
    """One W&B run, kept under ``DIR/wandb``. ``offline`` needs no network and no account; `wandb sync` sends it later.

    A resumed run goes on under the same id. W&B takes steps in rising order only: what is trained again after a resume
    overwrites nothing there.
    """

    def __init__(self, directory: Path, recipe: Recipe, run_id: str) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True)
        self._run: Any = wandb.init(
            project=recipe.loggers.wandb_project,
            name=recipe.name,
            id=run_id,
            dir=str(directory),
            config=recipe.model_dump(mode="json"),
            mode="online" if recipe.loggers.wandb == "online" else "offline",
            resume="allow" if recipe.loggers.wandb == "online" else None,
            settings=settings,
        )

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def summary(self, summary: dict[str, Any]) -> None:
        self._run.summary.update(summary)

    def close(self) -> None:
        self._run.finish()


class Guarded:
    """A logger as a :class:`~roll_core.training.reporting.Reporter` that cannot hurt the run."""

    def __init__(self, name: str, logger: Logger, record: str = "metrics.jsonl") -> None:
        """``record``: the run's file that has the same."""
        self._name = name
        self._record = record
        self._logger: Logger | None = logger

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._try(lambda logger: logger.metrics(step, values))

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None:
        self._try(lambda g: g.episode(booking, phase=phase, split=split) if isinstance(g, FollowsEpisodes) else None)

    def published(self, version: int) -> None:
        self._try(lambda logger: logger.published(version) if isinstance(logger, FollowsEpisodes) else None)

    async def status(self, status: RunStatus, detail: str = "", summary: dict[str, Any] | None = None) -> None:
        if summary:
            self._try(lambda logger: logger.summary(summary))

    def check(self) -> None:
        return None

    async def close(self) -> None:
        self._try(lambda logger: logger.close())
        self._logger = None

    def _try(self, tell: Callable[[Logger], None]) -> None:
        if self._logger is None:
            return
        try:
            tell(self._logger)
        except Exception:
            log.exception("%s failed and is left out from now on; %s has everything", self._name, self._record)
            self._logger = None


def make_loggers(recipe: Recipe, directory: Path, run_id: str) -> tuple[Reporter, ...]:
    """The loggers that ``recipe.loggers`` asks for. Raises RecipeError when a library is missing."""
    reporters: list[Reporter] = []
    if recipe.loggers.tensorboard:
        _need("tensorboard", "loggers.tensorboard")
        reporters.append(Guarded("TensorBoard", TensorBoardReporter(directory, recipe)))
    if recipe.loggers.wandb != "off":
        _need("wandb", "loggers.wandb")
        if recipe.loggers.wandb == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        reporters.append(Guarded("Weights & Biases", WandbReporter(directory, recipe, run_id)))
    if recipe.loggers.traces > 0:
        _need("opentelemetry", "loggers.traces", extra="otel")
        from roll_core.training.tracing import make_tracer

        tracer = make_tracer(directory, run_id, recipe.loggers.traces, recipe.loggers.traces_mb << 20)
        reporters.append(Guarded("OpenTelemetry", tracer, "episodes.jsonl"))
    return tuple(reporters)


def _need(module: str, key: str, *, extra: str = "loggers") -> None:
    if importlib.util.find_spec(module) is None:
        raise RecipeError(f"{key} asks for {module}, which is not installed: pip install 'rock-roll[{extra}]'.")

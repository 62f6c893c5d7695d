"""The part of a recipe that says who is told, and what wants a person's attention."""

from __future__ import annotations

from typing import Literal

from roll_core.config.section import Section


class Loggers(Section):
    """Where a run's metrics go beside the platform and the run's own files. Needs the extra `loggers`."""

    tensorboard: bool = False
    """Write event files into `tensorboard/` in the run's directory."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases. `offline` keeps the run in `wandb/` in the run's directory, for `wandb sync`."""
    wandb_project: str = "rock-roll"
    """Project there."""

"""The part of a recipe that says who is told, and what wants a person's attention."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rock.domain.alerts import Action, Rule
from roll_core.config.section import Positive, Section, Share


class Loggers(Section):
    """Where a run's metrics go beside the platform and the run's own files. Extras `loggers`, for traces `otel`."""

    tensorboard: bool = False
    """Write event files into `tensorboard/` in the run's directory."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases. `offline` keeps the run in `wandb/` in the run's directory, for `wandb sync`."""
    wandb_project: str = "rock-roll"
    """Project there."""
    traces: Share = 0.0
    """Share of the episodes of training of which an OpenTelemetry trace is kept in `traces.jsonl` in the run's
    directory, and sent to where `OTEL_EXPORTER_OTLP_ENDPOINT` says: from the prompt to the weights it made."""
    traces_mb: Positive = 64
    """What `traces.jsonl` may take; the oldest traces go."""


class AlertRule(Section):
    """One rule over one metric; `rock/domain/alerts.py` says what each kind means."""

    name: str
    """Different from the others'."""
    metric: str
    """Name as in the run's metrics: `rollout/void_rate`, `mismatch/k3`…"""
    kind: Literal["above", "below", "drop", "silent"]
    """`above`, `below`: a threshold with an error budget. `drop`: below a share of its best. `silent`: no sample for
    so many seconds."""
    threshold: float
    """In the metric's unit; a share for `drop`, seconds for `silent`."""
    window: Positive = 1
    """Samples, one a step, that are looked at."""
    budget: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of them that may be bad."""
    action: Literal["notify", "pause", "stop"] = "notify"
    """Besides telling: `pause` before the step that would train on it, or `stop`, which is for good."""


class Alerts(Section):
    """What wants a person's attention during a run, and who is told. A run that a rule pauses says why, trains on
    nothing of the step in question, and goes on with `rock train --resume`."""

    standard: bool = True
    """The standing rules as well: `void-rate`, `reward-collapse` and `no-progress`. They tell, and pause where more
    than `void_pause` of the episodes are void."""
    void_pause: Share = 0.5
    """Share of void episodes above which, in three steps out of five, the run pauses: what is left is no fair sample
    of the tasks. 1: never."""
    rules: tuple[AlertRule, ...] = ()
    """Rules of one's own: mappings with `name`, `metric`, `kind`, `threshold` and, if wanted, `window`, `budget`,
    `action`."""
    webhook: str = ""
    """Address that gets each alert as JSON by POST."""
    command: tuple[str, ...] = ()
    """Program and arguments that get each alert as JSON on standard input. No shell is involved."""
    email: str = ""
    """Address that gets each alert by `smtp_host`."""
    smtp_host: str = "localhost"
    """`HOST` or `HOST:PORT` of the mail server."""

    @model_validator(mode="after")
    def _rules_can_be(self) -> Self:
        for rule in self.rules:
            as_rule(rule)
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"alerts.rules need different names; twice or more: {', '.join(twice)}")
        if self.webhook and not self.webhook.startswith(("http://", "https://")):
            raise ValueError(f"alerts.webhook {self.webhook!r} is no http(s) address")
        return self


def as_rule(rule: AlertRule) -> Rule:
    """Raises ValueError where kind and threshold do not suit each other."""
    return Rule(**(rule.model_dump() | {"action": Action(rule.action)}))

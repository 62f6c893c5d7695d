"""Alerts of a run: its metrics against the recipe's rules, before each learner step; who is told; what stops.

Invariants: rules are evaluated on a batch *before* it is trained on, so what pauses a run has not reached the weights;
telling somebody happens in a thread of its own, has a deadline, and cannot slow down or end a run; every alert is in
``alerts.jsonl`` and, where the platform is told, in the run's detail, whether anybody could be told or not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import smtplib
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import httpx

from rock.domain.alerts import Action, AlertBook, Change, Rule
from roll_core.config import Recipe
from roll_core.config.watching import Alerts, as_rule
from roll_core.errors import RunPaused
from roll_core.training.lines import Lines

log = logging.getLogger(__name__)

TELL_S = 15.0
"""Deadline of telling one receiver."""
FILE = "alerts.jsonl"
_KEPT_BYTES = 16 << 20
SILENCE_STEPS_S = 1800.0
_TICK_S = 5.0
STEP = "step"
"""The metric that says nothing but that a step was made."""


def standing_rules(alerts: Alerts) -> tuple[Rule, ...]:
    """Those that suit every run, and the recipe's own."""
    own = tuple(as_rule(rule) for rule in alerts.rules)
    if not alerts.standard:
        return own
    void = "rollout/void_rate"
    standing = [
        Rule("void-rate", void, "above", 0.05, window=10, budget=0.5),
        Rule("reward-collapse", "rollout/reward", "drop", 0.5, window=10),
        Rule("no-progress", STEP, "silent", SILENCE_STEPS_S),
    ]
    if alerts.void_pause < 1:
        standing.append(Rule("void-storm", void, "above", alerts.void_pause, window=5, budget=0.5, action=Action.PAUSE))
    taken = {rule.name for rule in own}
    return (*(rule for rule in standing if rule.name not in taken), *own)


@dataclass(frozen=True, slots=True)
class Alert:
    """What a receiver gets, as JSON."""

    run_id: str
    run: str
    alert: str
    state: str
    """``firing`` or ``cleared``."""
    action: str
    step: int
    metric: str
    value: float
    reason: str
    at: str

    def as_json(self) -> bytes:
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode()


class Receivers:
    """Webhook, command and e-mail of a recipe, told one after the other in a thread of their own."""

    def __init__(self, alerts: Alerts) -> None:
        self.alerts = alerts
        self._waiting: queue.SimpleQueue[Alert | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def tell(self, alert: Alert) -> None:
        if not (self.alerts.webhook or self.alerts.command or self.alerts.email):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="alerts", daemon=True)
            self._thread.start()
        self._waiting.put(alert)

    def close(self) -> None:
        """Wait until the last one was told, as long as that may take."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(4 * TELL_S)

    def _work(self) -> None:
        ways: tuple[tuple[str, object, Callable[[Alert], None]], ...] = (
            ("webhook", self.alerts.webhook, self._post),
            ("command", self.alerts.command, self._run),
            ("email", self.alerts.email, self._mail),
        )
        while (alert := self._waiting.get()) is not None:
            for name, wanted, way in ways:
                if not wanted:
                    continue
                try:
                    way(alert)
                except (httpx.HTTPError, OSError, subprocess.SubprocessError, smtplib.SMTPException) as error:
                    log.error("alerts.%s could not be told of %s: %s", name, alert.alert, error)

    def _post(self, alert: Alert) -> None:
        headers = {"content-type": "application/json"}
        answer = httpx.post(self.alerts.webhook, content=alert.as_json(), headers=headers, timeout=TELL_S)
        answer.raise_for_status()

    def _run(self, alert: Alert) -> None:
        done = subprocess.run(
            list(self.alerts.command), input=alert.as_json(), capture_output=True, timeout=TELL_S, check=False
        )
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()[-300:]
            log.error("alerts.command ended with %d: %s", done.returncode, words)

    def _mail(self, alert: Alert) -> None:
        host, _, port = self.alerts.smtp_host.partition(":")
        message = EmailMessage()
        message["Subject"] = f"[{alert.run}] {alert.alert} {alert.state}"
        message["From"] = message["To"] = self.alerts.email
        message.set_content(f"{alert.reason}\n\n{json.dumps(json.loads(alert.as_json()), indent=1)}\n")
        with smtplib.SMTP(host, int(port or 25), timeout=TELL_S) as server:
            server.send_message(message)


class Alarms:
    """The rules of one run at work."""

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        run_id: str,
        *,
        tell: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``tell`` gets a sentence for people with each alert."""
        self._recipe, self._run_id, self._tell, self._clock = recipe, run_id, tell, clock
        self._book = AlertBook(standing_rules(recipe.alerts), clock())
        self._lines = Lines(directory / FILE, _KEPT_BYTES)
        self._receivers = Receivers(recipe.alerts)
        self._step = 0

    def before_training(self, step: int, values: Mapping[str, float]) -> None:
        """Judge what a batch measures. Raises RunPaused where a rule says that it must not be trained on."""
        self._step = step
        self._handle(step, self._book.observe({STEP: step, **values}, self._clock()))

    def after_training(self, step: int, values: Mapping[str, float]) -> None:
        """Judge what only the learner step could measure; what ``before_training`` has seen must not be in it.

        Raises RunPaused: the step before is the last that the run will have made."""
        self._handle(step, self._book.observe(values, self._clock()))

    def tick(self, step: int) -> None:
        """Judge silence; called from time to time."""
        self._handle(step, self._book.tick(self._clock()))

    async def watch(self) -> None:
        """Judge silence for as long as the run goes on. Raises RunPaused where a rule says so."""
        self._book.observe({STEP: self._step}, self._clock())  # what came before was no silence
        while True:
            await asyncio.sleep(_TICK_S)
            self.tick(self._step)

    def values(self) -> dict[str, float]:
        return {"alerts/firing": float(len(self._book.firing))}

    def close(self) -> None:
        self._receivers.close()
        self._lines.close()

    def _handle(self, step: int, changes: list[Change]) -> None:
        for change in changes:
            self._say(step, change)
        for change in changes:
            if change.firing and change.rule.action is not Action.NOTIFY:
                again = (
                    "Look into it, then go on with `rock train --resume last`."
                    if change.rule.action is Action.PAUSE
                    else "The rule says to stop for good."
                )
                raise RunPaused(
                    f"Alert {change.rule.name} at step {step}: {change.reason}. Nothing of this step was trained on. "
                    f"{again}",
                    for_good=change.rule.action is Action.STOP,
                )

    def _say(self, step: int, change: Change) -> None:
        state = "firing" if change.firing else "cleared"
        rule = change.rule
        alert = Alert(
            self._run_id, self._recipe.name, rule.name, state, rule.action.value, step, rule.metric, change.value,
            change.reason, datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        log.log(logging.WARNING if change.firing else logging.INFO, "alert %s %s: %s", rule.name, state, change.reason)
        self._lines.append(alert.as_json())
        self._tell(f"alert {rule.name} {state}: {change.reason}")
        self._receivers.tell(alert)


def read_alerts(directory: Path) -> list[dict[str, Any]]:
    """All that is kept of a run's alerts, oldest first."""
    path = directory / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

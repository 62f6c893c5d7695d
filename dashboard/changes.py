"""What is different since a run was last well: weights, recipe, images, and what happened to the platform. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from dashboard import text
from dashboard.frames import Series
from dashboard.sentences import ALERTS
from rock.sdk import EventView, RunView, SandboxView

WELL_VOID_RATE = 0.05
"""Without alerts of its own, a step with a higher void rate was not well; as in the trainer's standing rule."""
CHANGES = ("run.", "env.", "quarantine.", "node.", "control.", "guardian.")
_UNCHANGING = frozenset({"run.started"})


@dataclass(frozen=True, slots=True)
class LastGood:
    """The last step with which nothing was wrong."""

    step: int
    at: datetime | None
    newest: int
    by: str
    """What said so."""

    @property
    def now(self) -> bool:
        return self.step == self.newest


def last_good(metrics: pd.DataFrame) -> LastGood | None:
    """None where no step says whether it was well, or none was."""
    if metrics.empty:
        return None
    void = Series.VOID_RATE.column(metrics)
    if ALERTS in metrics.columns:
        told, by = metrics[ALERTS].dropna(), "no alert fired"
        well = told[told == 0]
    elif void is not None:
        told, by = metrics[void].dropna(), f"void rate at most {WELL_VOID_RATE:.0%}"
        well = told[told <= WELL_VOID_RATE]
    else:
        return None
    if well.empty:
        return None
    step = int(well.index[-1])
    at = metrics.loc[step, "at"]
    return LastGood(step, at.to_pydatetime() if pd.notna(at) else None, int(told.index[-1]), by)


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"learner.lr": "1e-05"}``."""
    found: dict[str, str] = {}
    for key, value in recipe.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = str(value)
    return found


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, before, after) of every key that differs; what one side lacks is a dash."""
    old, new = flat(before), flat(after)
    keys = sorted(set(old) | set(new))
    return [
        (k, old.get(k, text.NOTHING), new.get(k, text.NOTHING)) for k in keys if old.get(k, None) != new.get(k, None)
    ]


def run_before(run: RunView, runs: Iterable[RunView]) -> RunView | None:
    """The run of the same name that was begun before it, to compare recipes with."""
    earlier = [
        r for r in runs if r.name == run.name and r.id != run.id and text.utc(r.created_at) < text.utc(run.created_at)
    ]
    return max(earlier, key=lambda r: text.utc(r.created_at), default=None)


def images(sandboxes: Iterable[SandboxView], run_id: str) -> list[str]:
    """The images that the run's sandboxes were made of, the latest first."""
    own = sorted((s for s in sandboxes if s.run_id == run_id), key=lambda s: text.utc(s.created_at), reverse=True)
    return list(dict.fromkeys(s.spec.image for s in own if not s.spec.from_snapshot))


def events_since(events: Sequence[EventView], since: datetime | None) -> list[EventView]:
    """Those that change what a run stands on, the latest first."""
    kept = [e for e in events if e.kind.startswith(CHANGES) and e.kind not in _UNCHANGING]
    if since is not None:
        kept = [e for e in kept if text.utc(e.at) > text.utc(since)]
    return sorted(kept, key=lambda e: (text.utc(e.at), e.id), reverse=True)

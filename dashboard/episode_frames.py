"""Episodes and their turns → tidy frames, as :mod:`dashboard.frames` does for the rest. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import pandas as pd

from dashboard import text
from rock.sdk import EpisodeRecord, TurnRecord


def ending(episode: EpisodeRecord) -> str:
    """How an episode ended, in one word for tables and search."""
    if episode.outcome in {"void", "cancelled"}:
        return episode.outcome
    if episode.success is None:
        return episode.outcome
    return "success" if episode.success else ("truncated" if episode.outcome == "truncated" else "failure")


def episode_frame(episodes: Iterable[EpisodeRecord], now: datetime) -> pd.DataFrame:
    """One row per episode in the order given."""
    rows = [
        {
            "ended": text.clock(e.ended_at, now),
            "result": ending(e),
            "reward": e.reward,
            "reason": e.reason,
            "recovered": e.recoveries,
            "task": e.task,
            "phase": e.phase.replace("_", " "),
            "step": e.step,
            "turns": e.turn_count,
            "tokens": e.generated_tokens,
            "took": text.duration((text.utc(e.ended_at) - text.utc(e.started_at)).total_seconds()),
            "ledger": e.ledger.value.replace("_", " "),
            "seed": e.seed,
            "episode": e.id,
        }
        for e in episodes
    ]
    return pd.DataFrame(rows, columns=EPISODE_COLUMNS).astype({"reward": "float64"})


EPISODE_COLUMNS = [
    "ended",
    "result",
    "reward",
    "reason",
    "recovered",
    "task",
    "phase",
    "step",
    "turns",
    "tokens",
    "took",
    "ledger",
    "seed",
    "episode",
]


def turn_frame(turns: Sequence[TurnRecord]) -> pd.DataFrame:
    """One row per turn, numbered from 1."""
    rows = [
        {
            "turn": i,
            "action": t.action,
            "reward": t.reward,
            "tokens": t.tokens,
            "version": t.policy_version,
            "mean_logprob": t.mean_logprob,
            "generate_s": t.generate_s,
            "env_s": t.env_s,
        }
        for i, t in enumerate(turns, start=1)
    ]
    columns = ["turn", "action", "reward", "tokens", "version", "mean_logprob", "generate_s", "env_s"]
    return pd.DataFrame(rows, columns=columns)

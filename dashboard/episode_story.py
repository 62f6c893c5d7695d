"""What an episode's own record does not say: where its sandbox was lost, how its group fared, what its turns were
taught, and the commands that play it again. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import mean

import pandas as pd

from dashboard import text
from dashboard.episode_frames import ending
from rock.sdk import EpisodeRecord, EpisodeRhythm, EventView, LedgerState

REPORT_SLACK = timedelta(seconds=5)
"""Between a recovery and the platform's event of it."""
_MOVED = re.compile(r"sandbox (?P<old>\S+) → (?P<new>[^\s:]+): ")
_RESTORED = re.compile(r"restore the snapshot of step (\d+)")
_REPLAYED = re.compile(r"replay (\d+) steps")


@dataclass(frozen=True, slots=True)
class Recovery:
    """The episode went on in another sandbox in mid-episode."""

    turn: int
    """The turn that was under way, from 1."""
    says: str


def recoveries(episode: EpisodeRecord, events: Iterable[EventView]) -> list[Recovery]:
    """In order. ``events``: those of kind ``lease.recovered``; whichever are of other episodes are passed over."""
    found, at = [], episode.sandbox_id
    begun, ended = text.utc(episode.started_at), text.utc(episode.ended_at) + REPORT_SLACK
    for event in sorted(events, key=lambda e: (text.utc(e.at), e.id)):
        moved = _MOVED.search(event.detail)
        if moved is None or moved["old"] != at or not begun <= text.utc(event.at) <= ended:
            continue
        at = moved["new"]
        done = sum(int(part[1]) for part in (_RESTORED.search(event.detail), _REPLAYED.search(event.detail)) if part)
        found.append(Recovery(done + 1, event.detail))
    return found


def turn_advantages(episode: EpisodeRecord, rhythm: EpisodeRhythm | None) -> list[float | None]:
    """The mean advantage of each turn's tokens, where a recorded rhythm has them; else None for each."""
    nothing: list[float | None] = [None] * len(episode.turns)
    if rhythm is None or len(rhythm.advantage) != sum(turn.tokens for turn in episode.turns):
        return nothing
    found, begin = nothing, 0
    for number, turn in enumerate(episode.turns):
        own = rhythm.advantage[begin : begin + turn.tokens]
        found[number] = mean(own) if own else None
        begin += turn.tokens
    return found


def group_frame(episode: EpisodeRecord, group: Sequence[EpisodeRecord]) -> pd.DataFrame:
    """The episode's group, the best first. ``against``: the reward less the mean of those that have one, which every
    group-relative advantage starts from; an episode without a reward takes no part."""
    rewards = [e.reward for e in group if e.reward is not None]
    middle = mean(rewards) if rewards else 0.0
    rows = [
        {
            "": "this one" if e.id == episode.id else "",
            "result": ending(e),
            "reward": e.reward,
            "against the group": None if e.reward is None else e.reward - middle,
            "turns": e.turn_count,
            "tokens": e.generated_tokens,
            "ledger": e.ledger.value.replace("_", " "),
            "seed": e.seed,
            "episode": e.id,
        }
        for e in sorted(group, key=lambda e: (e.reward is None, -(e.reward or 0.0), e.id))
    ]
    return pd.DataFrame(rows).astype({"reward": "float64", "against the group": "float64"})


def commands(run_id: str, episode: EpisodeRecord) -> str:
    """What plays it again in a sandbox of its own, and what redoes the learner's step it was trained in."""
    lines = []
    if episode.turns:
        played = ["rock", "env", "check", episode.env, "--task", episode.task, "--seed", str(episode.seed)]
        played += ["--steps", str(len(episode.turns))]
        played += [f"--action={turn.action}" for turn in episode.turns]
        lines.append(shlex.join(played))
    if episode.ledger is LedgerState.TRAINED and episode.step > 0:
        lines.append(shlex.join(["rock", "run", "replay", run_id, "--to", str(episode.step)]))
    return "\n".join(lines)

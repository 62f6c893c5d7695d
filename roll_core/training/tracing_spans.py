"""One episode as spans, from its prompt to the weights that learned from it. Pure: no clock, no library.

    episode ─┬─ open ─ reset ─ generate ─ step ─ generate ─ step … ─ give back      (rollout)
             └─ buffer ─ learner step ─ publish wait ─ publish                      (training; trained episodes only)

Invariants: every span lies within the first, which is the episode; none ends before it begins; those of rollout follow
each other without overlap and are as long as was measured (what lies between them, the making of prompts, counts to
``give back``); an episode has the same trace in every process of a run, so that its id leads to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rock.domain.outcome import LedgerState, Void, outcome_label
from roll_core.types import Trajectory

Value = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Span:
    """``start_s`` and ``end_s`` are Unix seconds."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""
    """Why what it stands for came to nothing; empty if it did not."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of an episode after it was played, as far as it is known. Times are Unix seconds."""

    state: LedgerState
    step: int
    booked_at_s: float
    learner_s: float | None = None
    """The step that trained on it; None if none did, or it is not known."""
    publish_wait_s: float = 0.0
    """From the end of that step to the booking: the learner waited for the publication before."""
    published_at_s: float | None = None
    """When every engine sampled with the weights that came of it."""


def trace_id(run_id: str, episode_id: str) -> int:
    """128 bits, never 0."""
    return int.from_bytes(_digest(run_id, episode_id, 16), "big") or 1


def sampled(run_id: str, episode_id: str, share: float) -> bool:
    """Whether the episode is among the ``share`` of all that are traced: the same answer after every resume."""
    return int.from_bytes(_digest(run_id, episode_id, 24)[16:], "big") < share * 2**64


def episode_spans(trajectory: Trajectory, ending: Ending) -> tuple[Span, ...]:
    """The episode first, then its parts in the order of their start."""
    rollout = tuple(_rollout(trajectory))
    parts = (*rollout, *_training(trajectory, rollout[-1].end_s, ending))
    end_s = max(trajectory.started_at_s, ending.booked_at_s, *(part.end_s for part in parts))
    outcome = trajectory.outcome
    attributes: dict[str, Value] = {
        "rock.episode": trajectory.id,
        "rock.group": trajectory.group_id,
        "rock.env": trajectory.env,
        "rock.task": trajectory.task,
        "rock.seed": trajectory.seed,
        "rock.sandbox": trajectory.sandbox_id,
        "rock.recoveries": trajectory.recoveries,
        "rock.policy_version": trajectory.init_version,
        "rock.outcome": outcome_label(outcome),
        "rock.account": ending.state.value,
        "rock.step": ending.step,
        "rock.turns": len(trajectory.turns),
        "rock.tokens": trajectory.generated_tokens,
    }
    if isinstance(outcome, Void):
        error = f"{outcome.cause}: {outcome.detail}" if outcome.detail else str(outcome.cause)
    else:
        attributes |= {"rock.reward": outcome.reward, "rock.success": outcome.success}
        error = ""
    return Span("episode", trajectory.started_at_s, end_s, attributes, error), *parts


def _rollout(trajectory: Trajectory) -> Iterator[Span]:
    at_s = trajectory.started_at_s
    for name, length_s in (("open", trajectory.open_s), ("reset", trajectory.reset_s)):
        if length_s > 0:  # it came so far
            yield Span(name, at_s, at_s := at_s + length_s)
    for number, turn in enumerate(trajectory.turns):
        versions = turn.generation.versions
        generated: dict[str, Value] = {
            "rock.turn": number,
            "rock.context_tokens": len(turn.context_ids),
            "rock.tokens": len(turn.generation.token_ids),
            "rock.finish": turn.generation.finish_reason,
            "rock.versions": len(set(versions)),
            "rock.policy_version": max(versions, default=trajectory.init_version),
        }
        yield Span("generate", at_s, at_s := at_s + turn.generate_s, generated)
        stepped: dict[str, Value] = {"rock.turn": number, "rock.reward": turn.reward, "rock.valid_action": turn.valid}
        yield Span("step", at_s, at_s := at_s + turn.env_s, stepped)
    # Turns are measured by a monotonic clock; the end is a time of day, which somebody may have set back meanwhile.
    yield Span("give back", at_s, max(at_s, trajectory.ended_at_s))


def _training(trajectory: Trajectory, ended_s: float, ending: Ending) -> Iterator[Span]:
    """``ended_s``: the end of rollout."""
    if isinstance(trajectory.outcome, Void) or ending.booked_at_s < ended_s:
        return
    if ending.learner_s is None:
        yield Span("buffer", ended_s, ending.booked_at_s)
        return
    learned_s = ending.booked_at_s - ending.publish_wait_s
    began_s = max(ended_s, learned_s - ending.learner_s)
    step: dict[str, Value] = {"rock.step": ending.step}
    yield Span("buffer", ended_s, began_s)
    yield Span("learner step", began_s, max(began_s, learned_s), step)
    yield Span("publish wait", max(began_s, learned_s), max(began_s, ending.booked_at_s), step)
    if ending.published_at_s is not None:
        began_s = max(began_s, ending.booked_at_s)
        yield Span("publish", began_s, max(began_s, ending.published_at_s), {"rock.policy_version": ending.step})


def _digest(run_id: str, episode_id: str, size: int) -> bytes:
    return hashlib.blake2b(f"{run_id}/{episode_id}".encode(), digest_size=size).digest()

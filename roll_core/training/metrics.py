"""The numbers of a training step. Names are ``area/name``; void episodes count in the void rate and nowhere else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rock.domain.outcome import Completed, Truncated, Void
from roll_core.engines.base import Engine, EngineStats
from roll_core.engines.router import Router
from roll_core.types import Group, Trajectory

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of successes with its 95 % Wilson interval."""

    rate: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, successes: int, n: int) -> Rate:
        if n == 0:
            return cls(0.0, 0.0, 1.0, 0)
        share = successes / n
        scale = 1 + Z_95**2 / n
        middle = (share + Z_95**2 / (2 * n)) / scale
        half = Z_95 / scale * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n * n))
        # Rounding may push a bound past the rate itself at 0 and 1.
        return cls(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), n)

    def as_dict(self) -> dict[str, float]:
        return {"rate": self.rate, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        return f"{self.rate:.1%} (95 % interval {self.low:.1%} – {self.high:.1%}, {self.n} episodes)"


def succeeded(trajectory: Trajectory) -> bool:
    return isinstance(trajectory.outcome, Completed | Truncated) and trajectory.outcome.success


@dataclass(slots=True)
class RolloutMeter:
    """Sums over the training episodes that ended since the last step; those that were cancelled are not among them."""

    counted: int = 0
    voids: int = 0
    successes: int = 0
    reward: float = 0.0
    turns: int = 0
    tokens: int = 0
    generate_s: float = 0.0
    env_s: float = 0.0
    recoveries: int = 0
    side_tokens: int = 0
    """Of ``tokens``, those in no turn: branches that agents left."""
    longest_s: float = 0.0
    """The longest episode, its environment included."""
    latency_s: list[float] = field(default_factory=list)
    """Of each episode, the mean of its environment's steps."""

    def add(self, trajectory: Trajectory) -> None:
        self.recoveries += trajectory.recoveries
        if isinstance(trajectory.outcome, Void):
            self.voids += 1
            return
        self.counted += 1
        self.successes += trajectory.outcome.success
        self.reward += trajectory.outcome.reward
        self.turns += len(trajectory.turns)
        self.tokens += trajectory.spent_tokens
        self.side_tokens += trajectory.side_tokens
        self.generate_s += sum(t.generate_s for t in trajectory.turns)
        env_s = sum(t.env_s for t in trajectory.turns)
        self.env_s += env_s
        self.longest_s = max(self.longest_s, env_s + sum(t.generate_s for t in trajectory.turns))
        self.latency_s.append(env_s / max(1, len(trajectory.turns)))

    def values(self) -> dict[str, float]:
        ended = self.counted + self.voids
        values = {
            "rollout/episodes": float(self.counted),
            "rollout/void_rate": self.voids / ended if ended else 0.0,
            "rollout/recoveries": float(self.recoveries),
        }
        if self.counted:
            values |= {
                "rollout/success": self.successes / self.counted,
                "rollout/reward": self.reward / self.counted,
                "rollout/turns": self.turns / self.counted,
                "rollout/tokens": self.tokens / self.counted,
                "rollout/side_tokens": self.side_tokens / self.counted,
                "rollout/generate_s": self.generate_s / self.counted,
                "rollout/env_s": self.env_s / self.counted,
                "rollout/longest_s": self.longest_s,
            }
        return values


LAGS = 4
"""The histogram's last bucket holds this many versions and more. α = 2 has nearly all of the gain (ROLL Flash, arXiv
2510.11345), so few runs go beyond."""


def staleness(groups: Sequence[Group], version: int) -> dict[str, float]:
    """How many versions behind the learner the batch's episodes were initiated, and its tokens sampled.

    ``staleness/at_K``: share of the samples that are K versions behind; ``at_4_up``: four and more.
    """
    samples = [version - m.init_version for g in groups for m in g.members]
    tokens = [version - v for g in groups for m in g.members for t in m.turns for v in t.generation.versions]
    mixed = [len(set(t.generation.versions)) > 1 for g in groups for m in g.members for t in m.turns]
    values = {
        "staleness/mean": sum(samples) / len(samples),
        "staleness/max": float(max(samples)),
        "staleness/token_mean": sum(tokens) / len(tokens) if tokens else 0.0,
        "staleness/mixed_turns": sum(mixed) / len(mixed) if mixed else 0.0,
    }
    counts = Counter(min(lag, LAGS) for lag in samples)
    return values | {
        f"staleness/at_{lag}{'_up' if lag == LAGS else ''}": counts[lag] / len(samples) for lag in range(LAGS + 1)
    }


def members(engine: Engine) -> tuple[EngineStats, ...]:
    """The counters of each engine, always as many of them."""
    return engine.members() if isinstance(engine, Router) else (engine.stats(),)


def weight_values(engine: Engine) -> dict[str, float]:
    """``weights/…``: how long the last version took to reach every engine, and what it cost on its way to engines
    elsewhere."""
    if not isinstance(engine, Router):
        return {}
    return {"weights/publish_s": engine.publish_s} | engine.weight_metrics()


def engine_values(before: Sequence[EngineStats], after: Sequence[EngineStats], wall_s: float) -> dict[str, float]:
    """Of all engines together, ``engine/busy`` as their mean; and of each, ``engine/I/…``, where there are several."""
    each = [_one_engine(old, new, max(wall_s, 1e-9)) for old, new in zip(before, after, strict=True)]
    prompt = sum(new.prefilled_tokens - old.prefilled_tokens for old, new in zip(before, after, strict=True))
    cached = sum(new.cached_tokens - old.cached_tokens for old, new in zip(before, after, strict=True))
    values = {
        "rollout/tokens_per_s": sum(one["tokens_per_s"] for one in each),
        "engine/busy": sum(one["busy"] for one in each) / len(each),
        "engine/cached": cached / (prompt + cached) if prompt + cached else 0.0,
        "engine/running": sum(one["running"] for one in each),
        "engine/waiting": float(sum(new.waiting for new in after)),
        "engine/restarts": float(sum(new.restarts for new in after)),
    }
    if len(each) > 1:
        values |= {f"engine/{i}/{name}": value for i, one in enumerate(each) for name, value in one.items()}
    return values


def _one_engine(before: EngineStats, after: EngineStats, wall_s: float) -> dict[str, float]:
    return {
        "tokens_per_s": (after.generated_tokens - before.generated_tokens) / wall_s,
        "busy": (after.busy_s - before.busy_s) / wall_s,
        "running": float(after.running),
        "version": float(after.version),
    }

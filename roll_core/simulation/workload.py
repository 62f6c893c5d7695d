"""What a simulation is about: how long samples are, how environments behave, what training costs, how many workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from roll_core.engines.base import SamplingParams
from roll_core.simulation.draws import normal
from roll_core.simulation.engine import EngineModel, LengthOf
from roll_core.simulation.environment import EnvironmentModel
from roll_core.simulation.tokens import SAMPLED_ID, Runs

MIGRATION_PREFILL_S = 2e-5
"""Engine seconds for each token that is read again when a running sequence moves to another engine: 50,000 tokens a
second, for which everybody on that engine waits. Prompts themselves are free in the published model."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal numbers of tokens: ``median``·exp(``prompt``·z_prompt + ``response``·z_response), capped."""

    median: float
    prompt: float = 0.0
    response: float = 0.0
    cap: int = 1 << 40

    def tokens(self, group_seed: int, sampling_seed: int) -> int:
        z = self.prompt * normal(group_seed, 0x9E) if self.prompt else 0.0
        z += self.response * normal(group_seed, sampling_seed, 0x1E) if self.response else 0.0
        return max(1, min(self.cap, round(self.median * math.exp(z))))

    @property
    def sigma(self) -> float:
        return math.hypot(self.prompt, self.response)

    @property
    def mean(self) -> float:
        """E[min(X, cap)] of the log-normal."""
        mu, sigma = math.log(self.median), self.sigma
        if not sigma:
            return min(self.median, self.cap)
        upper = (math.log(self.cap) - mu) / sigma
        phi: Callable[[float], float] = lambda z: 0.5 * math.erfc(-z / math.sqrt(2))  # noqa: E731 - a symbol
        return math.exp(mu + sigma**2 / 2) * phi(upper - sigma) + self.cap * (1 - phi(upper))

    def survival(self, tokens: float) -> float:
        """P(length > tokens)."""
        if tokens >= self.cap:
            return 0.0
        if tokens <= 0 or not self.sigma:
            return 1.0 if tokens < self.median or tokens <= 0 else 0.0
        return 0.5 * math.erfc((math.log(tokens / self.median) / self.sigma) / math.sqrt(2))


def length_of(lengths: Lengths, prompt_ids: Sequence[int], params: SamplingParams) -> int:
    """Tokens left to sample: those of a sequence that moved here already stand at the end of its prompt."""
    carried = 0
    while carried < len(prompt_ids) - 1 and prompt_ids[-1 - carried] == SAMPLED_ID:
        carried += 1
    return max(1, lengths.tokens(prompt_ids[0], params.seed or 0) - carried)


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    engines: int
    engine: EngineModel
    lengths: Lengths
    environment: EnvironmentModel = field(default_factory=EnvironmentModel)
    groups: int = 1
    """Groups in a batch."""
    group_size: int = 1
    train_s: float = 0.0
    """Worker seconds of training per sample."""
    sync_s: float = 0.0
    """Seconds to bring new weights to the engines, which generate nothing meanwhile."""

    @property
    def samples(self) -> int:
        return self.groups * self.group_size

    @property
    def length_of(self) -> LengthOf:
        return partial(length_of, self.lengths)


__all__ = ["MIGRATION_PREFILL_S", "Lengths", "Runs", "Workload", "length_of"]

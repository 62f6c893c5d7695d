"""Self-tuning: from what was measured, which α, which share β of the workers trains, how much redundancy, and why.

The model is ROLL Flash's (arXiv 2510.11345, section 4): with K workers, N samples a batch, E epochs, mean generation
cost μ_g and training cost μ_t in worker seconds a sample, L_g the time of the longest generation,

    T(α, β) ≤ max{ N·μ_g/((1−β)K) + L_g/(α+1),  E·N·μ_t/(βK) },
    β* = E·N·μ_t / (N·μ_g + K·L_g/(α+1) + E·N·μ_t),

against the synchronous, colocated T₀ = N(μ_g + E·μ_t)/K + L_g. Weights (t_sync) cost the rollout workers time in either
case. [ours] The tail L_g/(α+1) is what the bound charges when a batch must wait for its oldest sample. Where batches
take what is finished it only bites samples longer than the window, so it is left out of β then, and α is the smallest
with which the longest generation fits into the window of α steps: beyond that, staleness buys nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

Placement = Literal["colocated", "split"]


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds are worker seconds, except ``longest_s`` and ``sync_s``, which are seconds of waiting."""

    workers: int
    samples: int
    generate_s: float
    """μ_g: mean cost of generating a sample on a full engine."""
    longest_s: float
    """L_g: the longest generation."""
    train_s: float
    """μ_t: cost of training a sample once."""
    epochs: int = 1
    sync_s: float = 0.0
    groups: int = 1
    void_rate: float = 0.0
    """Share of episodes that are lost."""
    filtered_rate: float = 0.0
    """Share of groups without signal."""
    slow_rate: float = 0.0
    """Share of episodes that take several times as long as the median, for reasons of their environment."""


@dataclass(frozen=True, slots=True)
class EngineCurve:
    """How an engine slows down with what it runs: a pass over b sequences takes a + c·b seconds."""

    a_s: float
    c_s: float
    slots: int
    mean_tokens: float
    longest_tokens: float

    def token_s(self, batch: float) -> float:
        return self.a_s + self.c_s * batch

    def generate_s(self, batch: float) -> float:
        """μ_g when every engine keeps ``batch`` sequences running."""
        return self.mean_tokens * self.token_s(batch) / batch

    def longest_s(self, batch: float) -> float:
        return self.longest_tokens * self.token_s(batch)

    def measured(self, batch: float, **known: Any) -> Measured:
        return Measured(generate_s=self.generate_s(batch), longest_s=self.longest_s(batch), **known)


def split_within_window(curve: EngineCurve, alpha: float, **known: Any) -> Advice:
    """Which share trains, for a given α, where the longest generation must fit into its window.

    With a step of T seconds, of which the learner trains T_train, a sample initiated by a version has (α + 1)·T −
    T_train − t_sync until its batch is taken. Engines that run b sequences each generate at μ_g(b), cheaper the fuller,
    and take L_g(b) for the longest, longer the fuller; admission, (1 + α)·N, is what keeps them from being fuller. So
    for each split the best b is searched, and T is the longest of training, generating, and what the window asks for.
    [ours] The model has one b for all; really engines empty towards the end of a version, when what is left is long.
    Capping what decodes at once at the b found here was measured to be worse (1.45 against 1.73 times the synchronous
    speed on W5 at 128 workers, α = 2, seed 100): admission alone keeps the engines as full as is good.
    """
    m = curve.measured(1, **known)

    def step_s(train_workers: int) -> float:
        training = m.epochs * m.samples * m.train_s / train_workers
        rollout = m.workers - train_workers

        def needed(batch: int) -> float:
            generating = m.samples * curve.generate_s(batch) / rollout + m.sync_s
            window = (curve.longest_s(batch) + training + m.sync_s) / (alpha + 1)
            return max(training, generating, window)

        return min(needed(batch) for batch in range(1, curve.slots + 1))

    if alpha == 0 or m.workers < 2:
        return recommend(curve.measured(curve.slots, **known), alpha=alpha)
    full = recommend(curve.measured(curve.slots, **known), alpha=alpha)
    workers = min(range(1, m.workers), key=lambda w: (step_s(w), w))
    return replace(full, placement="split", train_workers=workers, predicted_s=step_s(workers))


@dataclass(frozen=True, slots=True)
class Advice:
    alpha: float
    placement: Placement
    train_workers: int
    """β·K, whole workers; all of them when colocated."""
    extra_groups: int
    extra_members: int
    predicted_s: float
    synchronous_s: float
    reasons: tuple[str, ...]

    def beta(self, workers: int) -> float:
        return self.train_workers / workers


def ideal_step_s(m: Measured) -> float:
    """T*: the roofline, no worker ever idle but for the weights."""
    return m.samples * (m.generate_s + m.epochs * m.train_s) / m.workers + m.sync_s


def synchronous_step_s(m: Measured) -> float:
    return ideal_step_s(m) + m.longest_s


def asymptotic_speedup(m: Measured) -> float:
    """What α → ∞ can gain over synchronous training: 1 + K·L_g/(N(μ_g + E·μ_t)), weights left out."""
    return 1 + m.workers * m.longest_s / (m.samples * (m.generate_s + m.epochs * m.train_s))


def optimal_beta(m: Measured, tail_s: float) -> float:
    """β*: both sides of the bound equal. ``tail_s``: L_g/(α+1), or 0 where no batch waits for its oldest sample."""
    training = m.epochs * m.samples * m.train_s
    total = m.samples * m.generate_s + m.workers * tail_s + training
    return training / total if total else 0.0


def bound_s(m: Measured, train_workers: int, tail_s: float) -> float:
    """T with so many workers training; weights pause the rollout workers only."""
    rollout = m.workers - train_workers
    generation = m.samples * m.generate_s / rollout + tail_s + m.sync_s
    return max(generation, m.epochs * m.samples * m.train_s / train_workers)


def best_split(m: Measured, tail_s: float) -> tuple[int, float]:
    """The whole number of training workers with the shortest step, and that step. β* is where the bound's two sides
    would meet if the tail, too, shrank with more rollout workers; whole workers are few enough to try them all."""
    return min(((w, bound_s(m, w, tail_s)) for w in range(1, m.workers)), key=lambda pair: pair[1])


def recommend(m: Measured, *, alpha: float | None = None, waits_for_oldest: bool = False, max_alpha: int = 8) -> Advice:
    """``alpha``: fixed by the user, else the smallest that lets the longest generation be fresh."""
    reasons: list[str] = []
    extra_groups, extra_members = _redundancy(m, reasons)
    synchronous_s = synchronous_step_s(m)
    chosen = alpha if alpha is not None else _smallest_alpha(m, max_alpha, reasons)
    tail_s = m.longest_s / (chosen + 1) if waits_for_oldest else 0.0
    if chosen == 0 or m.workers < 2:
        reasons.append("α = 0: every worker generates, then every worker trains; a split would idle one side always")
        return Advice(
            0.0, "colocated", m.workers, extra_groups, extra_members, synchronous_s, synchronous_s, (*reasons,)
        )
    workers, predicted_s = best_split(m, tail_s)
    if predicted_s >= synchronous_s:
        reasons.append(
            f"a step would take {predicted_s:.1f} s apart and {synchronous_s:.1f} s colocated: the longest generation "
            f"({m.longest_s:.1f} s) is too short to be worth hiding"
        )
        return Advice(
            0.0, "colocated", m.workers, extra_groups, extra_members, synchronous_s, synchronous_s, (*reasons,)
        )
    reasons.append(
        f"β = {workers}/{m.workers}: generation costs {m.generate_s:.3g} and training {m.epochs * m.train_s:.3g} "
        f"worker seconds a sample (β* = {optimal_beta(m, tail_s):.3f})"
    )
    reasons.append(f"predicted {predicted_s:.1f} s a step against {synchronous_s:.1f} s synchronously")
    return Advice(chosen, "split", workers, extra_groups, extra_members, predicted_s, synchronous_s, tuple(reasons))


def _smallest_alpha(m: Measured, max_alpha: int, reasons: list[str]) -> int:
    """A sample initiated late in version v must be finished when batch v + α is taken, α − 1 steps later at worst."""
    step_s = best_split(m, 0.0)[1] if m.workers > 1 else math.inf
    if step_s >= synchronous_step_s(m):
        return 0
    needed = min(max_alpha, 1 + math.ceil(m.longest_s / step_s))
    reasons.append(
        f"α = {needed}: the longest generation takes {m.longest_s:.0f} s, a step {step_s:.0f} s, and what starts late "
        f"in a version has α − 1 steps left"
    )
    return needed


def _redundancy(m: Measured, reasons: list[str]) -> tuple[int, int]:
    """Groups before members: adding groups beats enlarging them (paper, section 4.3)."""
    if not (m.slow_rate or m.filtered_rate or m.void_rate):
        return 0, 0
    size = m.samples / m.groups
    spoilt = 1 - (1 - min(1.0, m.slow_rate + m.void_rate)) ** size
    slow_groups = math.ceil(m.groups * spoilt + 2 * math.sqrt(m.groups * spoilt * (1 - spoilt)))
    filtered = math.ceil(m.groups * m.filtered_rate / max(0.05, 1 - m.filtered_rate) / 2)
    extra_members = int(m.slow_rate > 0 and slow_groups > m.groups // 8)
    extra_groups = filtered + (min(slow_groups, max(1, m.groups // 8)) if slow_groups else 0)
    reasons.append(
        f"{extra_groups} more groups, {extra_members} more members: {spoilt:.0%} of the groups meet a slow or lost "
        f"episode, {m.filtered_rate:.0%} have no signal"
    )
    return extra_groups, extra_members

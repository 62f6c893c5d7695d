"""What no scheduler can beat on a workload: printed beside every number that misses its target."""

from __future__ import annotations

import math
from collections.abc import Callable

from roll_core.simulation.engine import EngineModel
from roll_core.simulation.workload import Lengths, Workload


def work_s(workload: Workload, tokens: float) -> float:
    """Seconds in which these engines can generate so many tokens, every slot busy to the end."""
    return tokens * workload.engine.full_token_s / workload.engines


def batch_s(workload: Workload, tokens: float, longest: int) -> float:
    """A batch ends no sooner than its work, nor than its longest sequence alone on an engine."""
    return max(work_s(workload, tokens), longest * workload.engine.token_s(1))


def fresh_step_s(workload: Workload, alpha: float) -> float:
    """No step is shorter if every sample is trained on, none later than its bound allows.

    A sample's window is at most α + 1 steps. A sequence of l tokens needs its engine to be less than full: at batch b a
    token takes τ = a + c·b and costs c·τ/(τ − a) engine seconds. The cheapest speeds that bring the longest sequence
    home in the window solve min ∫ S(l)·c·τ/(τ − a) dl with ∫ τ dl = (α + 1)·T, hence τ − a ∝ √S(l), S the survival
    function of the lengths. They need to know how long a sequence has been running, nothing else; no scheduler knows
    more. Weights are taken to cost nothing.
    """

    def excess(step_s: float) -> float:
        generate_s = cheapest_generation_s(workload.lengths, workload.engine, (alpha + 1) * step_s)
        return workload.samples * (generate_s + workload.train_s) / workload.engines - step_s

    low = workload.samples * workload.train_s / workload.engines
    high = low + 1e5
    return _root(excess, low, high)


def cheapest_generation_s(lengths: Lengths, engine: EngineModel, window_s: float, points: int = 2000) -> float:
    """μ_g, in engine seconds, when the longest sequence must be done within ``window_s``; infinite if it cannot be."""
    step = lengths.cap / points
    survival = [lengths.survival((i + 0.5) * step) for i in range(points)]
    room_s = window_s - engine.a_s * lengths.cap
    if room_s <= engine.c_s * lengths.cap:
        return math.inf
    full = engine.c_s * engine.slots

    def used(scale: float) -> float:
        return sum(min(full, max(engine.c_s, scale * math.sqrt(s))) for s in survival) * step - room_s

    scale = 1e9 if used(1e9) <= 0 else _root(lambda k: -used(k), 0.0, 1e3)
    slower = [min(full, max(engine.c_s, scale * math.sqrt(s))) for s in survival]
    return sum(s * engine.c_s * (1 + engine.a_s / x) for s, x in zip(survival, slower, strict=True)) * step


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(80):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return high

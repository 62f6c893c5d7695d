"""What no scheduler can beat on a workload: printed beside every number that misses its target."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from roll_core.simulation.engine import EngineModel
from roll_core.simulation.workload import Lengths, Workload


def work_s(workload: Workload, tokens: float) -> float:
    """Seconds in which these engines can generate so many tokens, every slot busy to the end."""
    return tokens * workload.engine.full_token_s / workload.engines


def clairvoyant_s(lengths: Sequence[int], engine: EngineModel, engines: int) -> float:
    """No batch of sequences of these lengths ends sooner, even if every length were known and moving cost nothing.

    To end by T a sequence of l tokens needs at most T/l seconds for each on average. At batch b a token takes
    τ = a + c·b and costs c·τ/(τ − a) engine seconds, which is convex in τ: an even pace is the cheapest. So the least T
    is bounded from below by Σ l·c·τ/(τ − a) ≤ engines·T with τ = T/l, no slower than a full engine.
    """

    def excess(time_s: float) -> float:
        return sum(n * length * _share_s(engine, time_s / length) for length, n in counts.items()) - engines * time_s

    counts = Counter(lengths)
    shortest_s = max(lengths) * engine.token_s(1)
    return shortest_s if excess(shortest_s) <= 0 else _root(excess, shortest_s, shortest_s + 1e5)


def _share_s(engine: EngineModel, token_s: float) -> float:
    """Engine seconds for a token that takes ``token_s``."""
    paced_s = max(engine.token_s(1), min(token_s, engine.token_s(engine.slots)))
    return engine.c_s * paced_s / (paced_s - engine.a_s)


def split_step_s(workload: Workload, alpha: float) -> tuple[float, int]:
    """No step is shorter if every sample is trained on, none later than its bound allows, and some workers train while
    the others generate; and how many train then.

    A sample initiated by version v, which is published when the learner has trained the batch before, is taken α steps
    after that training began at the latest: on average its window is (α + 1)·T − N·μ_t/K_t − t_sync. A sequence of l
    tokens needs its engine to be less than full, see :func:`cheapest_generation_s`. Everything is taken to start at
    the moment of publication and moving to cost nothing.
    """
    few, many = workload.engines // 3, workload.engines - workload.engines // 4
    return min((_split_s(workload, alpha, k), k) for k in range(max(1, few), max(2, many)))


def _split_s(workload: Workload, alpha: float, train_workers: int) -> float:
    train_s = workload.samples * workload.train_s / train_workers

    def excess(step_s: float) -> float:
        window_s = (alpha + 1) * step_s - train_s - workload.sync_s
        generate_s = cheapest_generation_s(workload.lengths, workload.engine, window_s, points=200)
        return workload.samples * generate_s / (workload.engines - train_workers) + workload.sync_s - step_s

    return train_s if excess(train_s) <= 0 else _root(excess, train_s, train_s + 1e4, halvings=40)


def redundant_s(ends_s: Sequence[Sequence[float]], groups: int, members: int) -> float:
    """When ``groups`` of the groups have ``members`` ended members each: ``ends_s`` has, for each group, the ends its
    members would have if every one had an engine to itself."""
    return sorted(sorted(group)[members - 1] for group in ends_s)[groups - 1]


def cheapest_generation_s(lengths: Lengths, engine: EngineModel, window_s: float, points: int = 2000) -> float:
    """μ_g, in engine seconds, when the longest sequence must be done within ``window_s``; infinite if it cannot be.

    The cheapest speeds solve min ∫ S(l)·c·τ/(τ − a) dl with ∫ τ dl = ``window_s``, hence τ − a ∝ √S(l), S the survival
    function of the lengths. They need to know how long a sequence has been running, nothing else; without groups that
    tell of their siblings no scheduler knows more.
    """
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


def _root(falling: Callable[[float], float], low: float, high: float, halvings: int = 80) -> float:
    for _ in range(halvings):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return high

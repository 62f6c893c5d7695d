"""The frozen workloads of ``benchmarks.async_speedup``. Change nothing here: every published number rests on them.

Engines take a + c·batch seconds for a token of each sequence; a = 8 ms, c = 0.4 ms and 64 slots unless a workload says
otherwise. All draws are keyed (``roll_core.simulation.draws``), so a seed names one set of samples for every policy.
"""

from __future__ import annotations

from functools import partial

from roll_core.simulation.draws import exponential, normal, uniform
from roll_core.simulation.engine import EngineModel
from roll_core.simulation.environment import EnvironmentModel
from roll_core.simulation.workload import MIGRATION_PREFILL_S, Lengths, Workload

SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (100, 101, 102, 103, 104)
"""Constants are chosen on these, never on those that are reported."""


def _engine(a_s: float = 0.008, c_s: float = 0.0004, slots: int = 64, load_s: float = 0.0) -> EngineModel:
    return EngineModel(a_s, c_s, slots, load_s=load_s, prefill_s=MIGRATION_PREFILL_S)


def normal_latency(mean_s: float, sigma_s: float, group_seed: int, member: int, turn: int) -> float:
    return max(0.0, mean_s + sigma_s * normal(group_seed, member, turn, 0x1A))


def slowed_latency(
    sigma_s: float, turns: int, share: float, slow_s: float, group_seed: int, member: int, turn: int
) -> float:
    """N(10, σ), and a ``share`` of the trajectories meets one further delay of Exp(``slow_s``) at one of its turns."""
    latency_s = normal_latency(10.0, sigma_s, group_seed, member, turn)
    if uniform(group_seed, member, 0x51) < share and turn == int(uniform(group_seed, member, 0x52) * turns):
        latency_s += exponential(slow_s, group_seed, member, 0x53)
    return latency_s


def reward_latency(group_seed: int, member: int, turn: int) -> float:
    return 1.0 + 3.0 * uniform(group_seed, member, 0x2E)


# --- W1: prompt replication ------------------------------------------------------------------------------------------


def w1(prompts: int, candidates: int) -> Workload:
    """One batch on 16 engines of 32 slots. Baseline: a prompt's candidates on one engine."""
    lengths = Lengths(1500, prompt=0.7, response=0.4, cap=8192)
    return Workload(f"w1_{prompts}x{candidates}", 16, _engine(slots=32), lengths, groups=prompts, group_size=candidates)


# --- W2: queue scheduling --------------------------------------------------------------------------------------------


def w2(prompts: int) -> Workload:
    """A batch of groups with signal, half of which have none; scoring takes U(1, 4) s. Baseline: whole batches."""
    environment = EnvironmentModel(turns=1, latency=reward_latency, keep=0.5)
    lengths = Lengths(1000, prompt=0.6, response=0.5)
    return Workload(f"w2_{prompts}x8", 8, _engine(), lengths, environment, groups=prompts, group_size=8)


# --- W3: environment-level asynchrony --------------------------------------------------------------------------------


def w3(sigma_s: float) -> Workload:
    """256 environments, 20 turns of about 120 tokens, latency N(10, σ). Baseline: a barrier each turn."""
    environment = EnvironmentModel(turns=20, latency=partial(normal_latency, 10.0, sigma_s))
    lengths = Lengths(120, response=0.6)
    return Workload(f"w3_sigma{sigma_s:g}", 32, _engine(0.010, 0.0003), lengths, environment, groups=32, group_size=8)


# --- W4: redundant environments --------------------------------------------------------------------------------------


def w4(*, mild: bool = False) -> Workload:
    """32 groups × 8 wanted, latency N(10, 5); tokens and engines of W3. Baseline: exactly as many as wanted.

    1 % of the trajectories meet a delay of Exp(100 s); mild: ten turns instead of three, 0.2 %, Exp(60 s).
    """
    turns, share, slow_s = (10, 0.002, 60.0) if mild else (3, 0.01, 100.0)
    environment = EnvironmentModel(turns=turns, latency=partial(slowed_latency, 5.0, turns, share, slow_s))
    name = "w4_mild" if mild else "w4"
    return Workload(name, 32, _engine(), Lengths(120, response=0.6), environment, groups=32, group_size=8)


# --- W5: end to end --------------------------------------------------------------------------------------------------


def w5(workers: int) -> Workload:
    """N = 4096 single samples, 2.2 worker seconds of training each. Baseline: synchronous, colocated, same workers."""
    lengths = Lengths(1800, response=0.8, cap=16384)
    engine = _engine(0.010, 0.0006, load_s=5.0)
    return Workload(f"w5_{workers}", workers, engine, lengths, groups=4096, group_size=1, train_s=2.2, sync_s=5.0)


def w5_agentic(workers: int = 32) -> Workload:
    """W3's environments (σ = 10) with N = 512, training and weights as in :func:`w5`."""
    base = w3(10.0)
    engine = _engine(0.010, 0.0003, load_s=5.0)
    return Workload(
        "w5_agentic", workers, engine, base.lengths, base.environment, groups=64, group_size=8, train_s=2.2, sync_s=5.0
    )

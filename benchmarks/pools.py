"""Warm pools: how often a claim hits and what the waiting sandboxes cost, against a fixed size and the best fixed size.

``python -m benchmarks.pools [--quick]`` plays demand for an hour on a virtual clock against the very code that sizes
and plans the pools of a node (:mod:`rock.domain.sizing`, :mod:`rock.domain.pools`), with starts that take as long as
containers do. For each load: the share of claims that found a ready sandbox, the median and p99 of what the others
waited, and the sandbox-seconds that were ready and idle, for

- ``demand``: the pool as a node keeps it;
- ``fixed``: always the two that an environment asks for by default;
- ``oracle``: the smallest fixed size that reaches the hit rate the pool aims at, found with hindsight.

Then it measures the claim itself, on a node with the fake runtime: ``warm_claim_p50_ms``. That one is wall time, the
rest is not: the same numbers come out on any machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from heapq import heappop, heappush
from itertools import count
from pathlib import Path

from rock.domain.pools import PoolState, Refills, plan
from rock.domain.sizing import PoolLimits, Sizer, SizingPolicy

READY = 2
CAPACITY = 64
MAX_STARTING = 4
REFILL_PER_S = 8.0
HOLD_S = 20.0
"""How long each claimed sandbox is used: it takes room meanwhile."""
LOOK_EVERY_S = 1.0
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Result:
    claims: int
    hit_rate: float
    miss_wait_p50_s: float
    miss_wait_p99_s: float
    idle_sandbox_s_per_claim: float
    mean_level: float
    evictions_per_claim: float


# --- demand -----------------------------------------------------------------------------------------------------------


def steady(rate_per_s: float) -> Callable[[random.Random, float], Iterator[float]]:
    def arrivals(rng: random.Random, until_s: float) -> Iterator[float]:
        now = 0.0
        while (now := now + rng.expovariate(rate_per_s)) < until_s:
            yield now

    return arrivals


def bursts(size: int, every_s: float) -> Callable[[random.Random, float], Iterator[float]]:
    """A trainer that starts its groups of episodes together."""

    def arrivals(rng: random.Random, until_s: float) -> Iterator[float]:
        now = 0.0
        while (now := now + rng.uniform(0.8, 1.2) * every_s) < until_s:
            yield from sorted(now + rng.uniform(0.0, 0.2) for _ in range(size))

    return arrivals


def steps(*rates_per_s: float) -> Callable[[random.Random, float], Iterator[float]]:
    """The rate changes from time to time."""

    def arrivals(rng: random.Random, until_s: float) -> Iterator[float]:
        now, phase_s = 0.0, until_s / len(rates_per_s)
        while now < until_s:
            rate = rates_per_s[min(len(rates_per_s) - 1, int(now / phase_s))]
            now += rng.expovariate(rate)
            if now < until_s:
                yield now

    return arrivals


LOADS: dict[str, Callable[[random.Random, float], Iterator[float]]] = {
    "steady 0.5/s": steady(0.5),
    "steady 2/s": steady(2.0),
    "bursts of 8 every 60 s": bursts(8, 60.0),
    "bursts of 16 every 120 s": bursts(16, 120.0),
    "0.2/s, 2/s, 0.2/s": steps(0.2, 2.0, 0.2),
}


# --- the pool on a virtual clock --------------------------------------------------------------------------------------


class Simulation:
    """One pool of one node. ``size``: fixed; None: as demand wants."""

    def __init__(self, size: int | None, seed: int, limits: PoolLimits | None = None) -> None:
        self._rng = random.Random(seed)
        self._sizer = Sizer(SizingPolicy(), limits or PoolLimits(READY, maximum=CAPACITY))
        self._refills = Refills(REFILL_PER_S, int(REFILL_PER_S))
        self._size = size
        self._events: list[tuple[float, int, str]] = []
        self._order = count()
        self._ready, self._starting, self._in_use = 0, 0, 0
        self._waiting: list[float] = []
        self._waits: list[float] = []
        self._hits, self._claims, self._evictions = 0, 0, 0
        self._idle_s, self._level_s, self._now = 0.0, 0.0, 0.0

    def run(self, arrivals: Iterator[float], until_s: float) -> Result:
        for at in arrivals:
            self._later(at, "claim")
        self._later(0.0, "look")
        while self._events and self._events[0][0] < until_s:
            at, _, what = heappop(self._events)
            self._idle_s += self._ready * (at - self._now)
            self._level_s += (self._size or self._sizer.level) * (at - self._now)
            self._now = at
            getattr(self, f"_{what}")()
            self._plan()
        missed = sorted(self._waits) or [0.0]
        return Result(
            claims=self._claims,
            hit_rate=round(self._hits / max(1, self._claims), 4),
            miss_wait_p50_s=round(missed[len(missed) // 2], 3),
            miss_wait_p99_s=round(missed[int(0.99 * (len(missed) - 1))], 3),
            idle_sandbox_s_per_claim=round(self._idle_s / max(1, self._claims), 2),
            mean_level=round(self._level_s / until_s, 2),
            evictions_per_claim=round(self._evictions / max(1, self._claims), 4),
        )

    def _later(self, at: float, what: str) -> None:
        heappush(self._events, (at, next(self._order), what))

    def _claim(self) -> None:
        self._claims += 1
        self._sizer.note_claim(self._now)
        if self._ready:
            self._ready -= 1
            self._hits += 1
            self._serve()
        else:
            self._waiting.append(self._now)

    def _serve(self) -> None:
        self._in_use += 1
        self._later(self._now + self._rng.expovariate(1 / HOLD_S), "release")

    def _release(self) -> None:
        self._in_use -= 1

    def _started(self) -> None:
        self._starting -= 1
        if self._waiting:
            self._waits.append(self._now - self._waiting.pop(0))
            self._serve()
        else:
            self._ready += 1

    def _look(self) -> None:
        self._later(self._now + LOOK_EVERY_S, "look")

    def _plan(self) -> None:
        now, waiting = self._now, len(self._waiting)
        target = self._size if self._size is not None else self._sizer.target(now)
        surplus = 0
        if self._size is None:
            surplus = self._sizer.surplus(now, ready=self._ready, starting=self._starting, waiting=waiting)
        made = plan(
            [PoolState("p", target, self._ready, self._starting, surplus)],
            ["p"] * waiting,
            slots=MAX_STARTING - self._starting,
            room=CAPACITY - self._ready - self._starting - self._in_use,
            refills=self._refills.available(now),
        )
        self._refills.spend(made.refills)
        evicted = made.evictions.get("p", 0)
        self._ready -= evicted
        self._evictions += evicted
        for _ in range(made.starts.get("p", 0)):
            self._starting += 1
            # A container with its guest: 0.4 s alone, up to a second when four start together on two cores.
            start_s = self._rng.lognormvariate(-0.7, 0.35)
            self._sizer.starts.note(start_s)
            self._later(now + start_s, "started")


def simulate(load: str, size: int | None, *, seed: int, seconds: float = HOUR_S) -> Result:
    return Simulation(size, seed).run(LOADS[load](random.Random(f"{load}/{seed}"), seconds), seconds)


def oracle(load: str, *, seed: int, seconds: float, hit_rate: float) -> tuple[int, Result]:
    """The smallest fixed size that reaches ``hit_rate``; the largest that fits if none does."""
    low, high = 1, CAPACITY
    while low < high:
        middle = (low + high) // 2
        if simulate(load, middle, seed=seed, seconds=seconds).hit_rate >= hit_rate:
            high = middle
        else:
            low = middle + 1
    return low, simulate(load, low, seed=seed, seconds=seconds)


# --- the claim itself -------------------------------------------------------------------------------------------------


async def warm_claims(claims: int) -> list[float]:
    """Milliseconds of each claim from a warm pool of a node with the fake runtime, one after the other."""
    from rock.node.config import NodeConfig
    from rock.node.node import Node
    from rock.runtimes.fake import FakeRuntime
    from rock.wire.handle import token_sha256
    from rock.wire.models import SandboxSpec

    spec, runtime = SandboxSpec(image="fake"), FakeRuntime()
    with tempfile.TemporaryDirectory(prefix="rkp") as folder:
        config = NodeConfig("bench", Path(folder) / "run", capacity=64)
        node = Node(replace(config, refill_per_s=1000.0), runtime)
        await node.open()
        await node.adopt([])
        try:
            await node.set_pool(spec, 16)
            out: list[float] = []
            while len(out) < claims:
                if (await node.view()).pools[0].ready < 8:
                    await asyncio.sleep(0.01)
                    continue
                began = time.perf_counter()
                view = await node.claim(
                    spec,
                    lease_id=f"ls-{len(out)}",
                    token_sha256=token_sha256("t"),
                    epoch=1,
                    run_id="bench",
                    wait_s=30,
                )
                out.append((time.perf_counter() - began) * 1000)
                await node.release(view.id, reason="done")
            return out
        finally:
            await node.close()
            await runtime.destroy()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pools", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ten minutes of demand and fewer claims")
    args = parser.parse_args()
    seconds, claims = (600.0, 100) if args.quick else (HOUR_S, 500)
    wanted = SizingPolicy().hit_rate
    loads = {}
    for load in LOADS:
        demand = simulate(load, None, seed=1, seconds=seconds)
        size, best = oracle(load, seed=1, seconds=seconds, hit_rate=wanted)
        loads[load] = {
            "demand": asdict(demand),
            "fixed": {"size": READY} | asdict(simulate(load, READY, seed=1, seconds=seconds)),
            "oracle": {"size": size} | asdict(best),
        }
    times = sorted(asyncio.run(warm_claims(claims)))
    print(
        json.dumps(
            {
                "benchmark": "pools",
                "simulated_s": seconds,
                "loads": loads,
                "warm_claim_p50_ms": round(statistics.median(times), 3),
                "warm_claim_p99_ms": round(times[int(0.99 * (len(times) - 1))], 3),
                "warm_claims": len(times),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

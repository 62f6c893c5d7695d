"""How quick the steps are on this node, by pool, and which leased sandboxes are so slow that they are replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from rock.domain.sandbox import SandboxState
from rock.domain.slowness import Crowd, Latencies, Pace, SlowPolicy, may_replace, slow
from rock.node.record import Record

# Steps after which a pool's past is a measure, and after how many it begins to fade.
_ENOUGH = 100
_FADE_AT = 2000
_HELD = frozenset({SandboxState.LEASED, SandboxState.SUSPECT})


class Paces:
    def __init__(self, policy: SlowPolicy) -> None:
        self.policy = policy
        self.crowd = Crowd()
        self._past: dict[str, Latencies] = {}
        self._replaced_at: deque[float] = deque(maxlen=1000)

    def note(self, record: Record, counts: dict[float, int], now: float) -> None:
        record.health.window.add(counts, self.crowd.peak(now))
        past = self._past.setdefault(record.digest, Latencies())
        past.add(counts)
        if len(past) > _FADE_AT:
            past.fade()

    def step_p50_s(self) -> dict[str, float]:
        """Median of late, by pool digest."""
        medians = {digest: past.p50_s() for digest, past in self._past.items()}
        return {digest: p50_s for digest, p50_s in medians.items() if p50_s is not None}

    def forget(self, digests: Iterable[str]) -> None:
        """Keep only what these pools did."""
        self._past = {digest: self._past[digest] for digest in digests if digest in self._past}

    def slow(self, records: Iterable[Record]) -> dict[str, str]:
        paces: dict[str, Pace] = {
            r.id: r.health.window.pace(r.digest) for r in records if r.spec.env and r.state in _HELD
        }
        past = {digest: p50_s for digest, p50_s in self.step_p50_s().items() if len(self._past[digest]) >= _ENOUGH}
        return slow(paces, past, self.policy)

    def may_replace(self, living: int, now: float) -> bool:
        return may_replace(living, self._replaced_at, now, self.policy) > 0

    def replaced(self, now: float) -> None:
        self._replaced_at.append(now)

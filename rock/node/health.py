"""What a node has seen of one guest: probes, kills for memory, deaths of its environment, how quick its steps are."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rock.domain.detection import Watch
from rock.domain.slowness import SlowPolicy, Window
from rock.wire.models import ProbeResult

PROBES_KEPT = 10
# A guest that says more than this was taken over by what runs in it.
_MAX_LATENCIES = 256
_MAX_STEPS_BETWEEN = 10_000


class Steps(BaseModel):
    """Step latencies since the guest began. What comes from inside a sandbox is not trusted: bounded, and checked."""

    model_config = ConfigDict(extra="ignore", strict=True)
    count: Annotated[int, Field(ge=0)]
    us: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(max_length=_MAX_LATENCIES)]

    def counts(self) -> dict[float, int]:
        """Seconds → steps."""
        return {int(us) / 1e6: count for us, count in self.us.items() if us.isdecimal() and len(us) < 12}


class Pong(BaseModel):
    """A guest's answer to ``ping``."""

    model_config = ConfigDict(extra="ignore", strict=True)
    env: str = "none"
    busy_s: float = 0.0
    env_deaths: Annotated[int, Field(ge=0)] = 0
    env_cause: Annotated[str, Field(max_length=2000)] = ""
    steps: Steps | None = None

    @classmethod
    def of(cls, answer: object) -> Pong:
        """Nonsense counts as an answer that says nothing: it is alive, in a way."""
        try:
            return cls.model_validate(answer)
        except ValidationError:
            return cls()


@dataclass(slots=True, eq=False)
class Health:
    watch: Watch = field(default_factory=Watch)
    probes: deque[ProbeResult] = field(default_factory=lambda: deque(maxlen=PROBES_KEPT))
    heard_at: float | None = None
    """Its last sign of life, or when its start began, on the loop's clock."""
    due_at: float = 0.0
    """When to ask next, on the attentive clock; and when to look at its process again, while it is silent."""
    look_at: float = 0.0
    looks: int = 0
    suspected: bool = False
    """In the present silence."""
    looking: bool = False
    withdrawn: bool = False
    """Taken off the shelf because it was silent."""
    oom_kills: int = 0
    oom_at: float | None = None
    env_deaths: int = 0
    slow: str = ""
    """In what way it is slow; empty if it is not."""
    window: Window = field(default_factory=lambda: Window(SlowPolicy().min_steps))
    _counts: dict[float, int] = field(default_factory=dict)

    def note_probe(self, ok: bool, latency_s: float, detail: str = "") -> None:
        self.probes.append(ProbeResult(at=datetime.now(UTC), ok=ok, latency_s=round(latency_s, 6), detail=detail))

    def heard(self, now: float) -> None:
        self.heard_at = now
        self.watch.answered()
        self.looks, self.suspected = 0, False

    def new_steps(self, steps: Steps) -> dict[float, int]:
        """Those since the last time."""
        counts = steps.counts()
        new = {s: min(n - self._counts.get(s, 0), _MAX_STEPS_BETWEEN) for s, n in counts.items()}
        self._counts = counts
        return {seconds: count for seconds, count in new.items() if count > 0}

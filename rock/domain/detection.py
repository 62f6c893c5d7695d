"""Is it dead? What a history of probes, and a look at the process, say about one guest. Pure; time is passed in.

Invariants:
- A guest that answers is alive, whatever else is believed of it.
- Nobody is called dead for silence while *we* could not listen: silence is counted on :class:`Attention`'s clock, which
  stands still when our own loop does not run (a saturated machine, a suspended one, a stopped process).
- Silence alone takes long to prove anything, and longer on a machine under strain. A process that is gone, stopped or
  paused is proof, and short silence is enough then.
- A longer silence never leads to a milder verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Seen(StrEnum):
    """What the runtime and the kernel say of the guest's process."""

    UNKNOWN = "unknown"  # nobody can look: a remote engine, a runtime that does not answer
    GONE = "gone"
    PAUSED = "paused"  # by the engine, or its control group is frozen
    STOPPED = "stopped"  # by a signal
    SLEEPING = "sleeping"  # it waits, though it has been spoken to
    RUNNABLE = "runnable"  # it has work and wants the processor, or waits for the disk


class Verdict(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the process. ``cpu_s``: processor time it has used in all, where that can be read."""

    seen: Seen
    cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long silence is borne. On a quiet machine an answer takes a millisecond."""

    suspect_after_s: float = 0.4
    frozen_after_s: float = 0.8
    """With proof that it is stopped or paused. Not at once: a commit of its file system pauses it for a moment too."""
    dead_after_s: float = 6.0
    """Without proof."""
    strain_factor: float = 10.0
    """By how much ``dead_after_s`` grows while the machine is under strain, or while the guest gets on with something.
    A guest that *sleeps* through our question is not starved, and gets no more time for that."""
    strained_suspect_factor: float = 5.0
    """By how much ``suspect_after_s`` grows under strain, where there is no proof: half a second says nothing then."""

    def __post_init__(self) -> None:
        if not (self.suspect_after_s > 0 and self.frozen_after_s > 0 and self.dead_after_s > 0):
            raise ValueError(f"all times of a patience must be above 0, got {self}")
        if min(self.strain_factor, self.strained_suspect_factor) < 1:
            raise ValueError(f"the factors of a patience must be at least 1, got {self}")


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    cause: str = ""
    """Of a death: ``exited``, ``paused``, ``frozen`` (stopped by a signal) or ``probe`` (silent, without proof)."""
    detail: str = ""


ALIVE = Judgement(Verdict.ALIVE)
_PROOF = {Seen.PAUSED: ("paused", "it is paused"), Seen.STOPPED: ("frozen", "its guest was stopped by a signal")}


class Watch:
    """The history of one guest, as far as it bears on the verdict. All times are on the attentive clock."""

    def __init__(self) -> None:
        self.asked_at: float | None = None
        """When the question was put that has not been answered yet."""
        self._looks: tuple[Look, Look] | None = None  # the first of this silence, and the latest
        self._slept = True

    def asked(self, at: float) -> None:
        if self.asked_at is None:
            self.asked_at = at

    def answered(self) -> None:
        """It spoke, so all that was believed of it is void."""
        self.asked_at, self._looks, self._slept = None, None, True

    def looked(self, look: Look) -> None:
        """Somebody looked at its process. Meaningless, and forgotten, unless it is silent; a death is for good."""
        if self.asked_at is None and look.seen is not Seen.GONE:
            return
        first = self._looks[0] if self._looks is not None else look
        self._slept = self._slept and look.seen is Seen.SLEEPING
        self._looks = (first, look)

    def silent_s(self, at: float) -> float:
        return max(0.0, at - self.asked_at) if self.asked_at is not None else 0.0

    def judge(self, at: float, patience: Patience, *, strained: bool) -> Judgement:
        seen = self._looks[1].seen if self._looks is not None else Seen.UNKNOWN
        if seen is Seen.GONE:
            return Judgement(Verdict.DEAD, "exited", "its process is gone")
        silent_s = self.silent_s(at)
        if silent_s < patience.suspect_after_s:
            return ALIVE
        said = f"its guest did not answer for {silent_s:.1f} s"
        if seen in _PROOF:
            cause, why = _PROOF[seen]
            verdict = Verdict.DEAD if silent_s >= patience.frozen_after_s else Verdict.SUSPECT
            return Judgement(verdict, cause, f"{said}; {why}")
        limit_s = patience.dead_after_s * (patience.strain_factor if self._lenient(strained) else 1.0)
        if silent_s >= limit_s:
            return Judgement(Verdict.DEAD, "probe", f"{said}; its process is {seen}" if self._looks else said)
        if strained and silent_s < patience.suspect_after_s * patience.strained_suspect_factor:
            return ALIVE
        return Judgement(Verdict.SUSPECT, "probe", said)

    def _lenient(self, strained: bool) -> bool:
        """A runnable process on a strained machine is starved; one whose processor time grows is busy. Both may come
        back. One that was asleep whenever we looked has not been kept from answering by anybody."""
        if self._looks is None:
            return strained
        first, last = self._looks
        progress = first.cpu_s is not None and last.cpu_s is not None and last.cpu_s > first.cpu_s
        return progress or (strained and not self._slept)


class Attention:
    """A clock that runs only while we listen: of each tick it counts at most ``tick_s`` times ``slack``.

    ``lag_s`` is the latest tick's delay, the event loop's own lag.
    """

    def __init__(self, now: float, tick_s: float, slack: float = 2.0) -> None:
        self._at = now
        self._tick_s = tick_s
        self._longest_s = tick_s * slack
        self.now_s = 0.0
        self.lag_s = 0.0

    def tick(self, now: float) -> None:
        passed_s = max(0.0, now - self._at)
        self._at = now
        self.now_s += min(passed_s, self._longest_s)
        self.lag_s = max(0.0, passed_s - self._tick_s)


class Strain:
    """Whether the machine was so busy of late that a guest's silence may be the machine's fault."""

    def __init__(self, *, cpu: float = 0.85, memory: float = 0.97, lag_s: float = 0.1, hold_s: float = 10.0) -> None:
        self._limits = (cpu, memory, lag_s)
        self._hold_s = hold_s
        self._until = float("-inf")

    def note(self, now: float, *, cpu: float = 0.0, memory: float = 0.0, lag_s: float = 0.0) -> None:
        """Shares are 0 to 1. Strain is remembered for ``hold_s``: who waits for a processor waits on after the peak."""
        if any(value >= limit for value, limit in zip((cpu, memory, lag_s), self._limits, strict=True)):
            self._until = now + self._hold_s

    def strained(self, now: float) -> bool:
        return now < self._until

"""When something that fails again and again is no longer tried, when it is tried once more, and what clears it. Pure.

Two kinds of things are judged: images (by their pool's digest) for starts that fail and sandboxes that die young, and
tasks (``environment/task``) for environments that cannot be reset to them. Each has a *row*: its failures since it last
succeeded. The rules, all in :class:`Book`:

- a row that exceeds the restart intensity (too many too fast), or is ``max_in_row`` long at whatever pace, puts the
  subject in quarantine;
- failures that ran side by side are one piece of evidence: a failure counts only if what failed began after the
  failure that counted before it. One hiccup of the machine under four starts must not condemn an image;
- in quarantine it is refused until ``retry_after_s`` have passed; then it is on trial (half-open): it may be tried, the
  first failure puts it back for twice as long (at most ``retry_cap_s``), a success ends the quarantine;
- a success ends any row. Somebody may clear a subject at any time; it then starts afresh;
- a subject is forgotten when nothing was heard of it for ``forget_after_s``, so the book stays small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from rock.domain.intensity import Intensity, IntensityPolicy


class Verdict(StrEnum):
    """What a failure or a success changed."""

    NOTHING = "nothing"
    ADDED = "added"
    """It is in quarantine now, and was not before (or was on trial)."""
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class QuarantinePolicy:
    intensity: IntensityPolicy = field(default_factory=IntensityPolicy)
    max_in_row: int = 8
    """For what fails slowly, such as by a time-out of a minute: no window catches it."""
    retry_after_s: float = 600.0
    retry_cap_s: float = 6 * 3600.0
    forget_after_s: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if self.max_in_row < 1 or not 0 < self.retry_after_s <= self.retry_cap_s:
            raise ValueError(
                "quarantine needs max_in_row >= 1 and 0 < retry_after_s <= retry_cap_s, got "
                f"max_in_row={self.max_in_row}, retry_after_s={self.retry_after_s}, retry_cap_s={self.retry_cap_s}"
            )

    def wait_s(self, trials: int) -> float:
        """How long the next quarantine lasts after ``trials`` trials that failed."""
        return min(self.retry_cap_s, self.retry_after_s * 2.0 ** min(trials, 32))


@dataclass(slots=True)
class Entry:
    """One subject. ``until`` is None unless it is in quarantine (or on trial: then it lies in the past)."""

    intensity: Intensity
    heard_at: float
    failures: int = 0
    """In a row, side by side ones counted once."""
    counted_at: float = float("-inf")
    reason: str = ""
    """The last evidence."""
    since: float = 0.0
    until: float | None = None
    trials: int = 0


class Book:
    """The rows of all subjects of one kind."""

    def __init__(self, policy: QuarantinePolicy | None = None) -> None:
        self.policy = policy or QuarantinePolicy()
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def failed(self, subject: str, *, began_at: float, now: float, reason: str) -> Verdict:
        """Something of ``subject`` that began at ``began_at`` has failed now."""
        entry = self._entries.get(subject)
        if entry is None:
            entry = self._entries[subject] = Entry(Intensity(self.policy.intensity), now)
        entry.heard_at, entry.reason = now, reason
        if began_at < entry.counted_at:
            return Verdict.NOTHING
        entry.counted_at = now
        entry.failures += 1
        escalate = entry.intensity.failed(now) or entry.failures >= self.policy.max_in_row
        if entry.until is not None:
            if now < entry.until:
                return Verdict.NOTHING  # it began before the quarantine did
            entry.trials += 1
        elif not escalate:
            return Verdict.NOTHING
        else:
            entry.since = now
        entry.until = now + self.policy.wait_s(entry.trials)
        return Verdict.ADDED

    def succeeded(self, subject: str, now: float) -> Verdict:
        """Something of ``subject`` has shown that it can live."""
        entry = self._entries.get(subject)
        if entry is None:
            return Verdict.NOTHING
        if entry.until is not None and now < entry.until:
            return Verdict.NOTHING  # one that was there before; what came after it still failed
        del self._entries[subject]
        return Verdict.CLEARED if entry.until is not None else Verdict.NOTHING

    def clear(self, subject: str) -> bool:
        """Somebody says that it is well again. False if it was not in quarantine."""
        entry = self._entries.pop(subject, None)
        return entry is not None and entry.until is not None

    def put(self, subject: str, *, failures: int, reason: str, age_s: float, now: float) -> None:
        """It was in quarantine before a restart, for ``age_s`` by now. It is on trial no earlier than it would have
        been; how many trials it had failed is not kept."""
        if subject in self._entries:
            return
        entry = Entry(Intensity(self.policy.intensity), now, failures, now, reason, now - age_s)
        entry.until = now + max(0.0, self.policy.wait_s(0) - age_s)
        self._entries[subject] = entry

    def refuses(self, subject: str, now: float) -> Entry | None:
        """Its entry while it is in quarantine; None when it may be tried, on trial too."""
        entry = self._entries.get(subject)
        return entry if entry is not None and entry.until is not None and now < entry.until else None

    def on_trial(self, subject: str, now: float) -> bool:
        entry = self._entries.get(subject)
        return entry is not None and entry.until is not None and now >= entry.until

    def quarantined(self) -> Iterator[tuple[str, Entry]]:
        """Those in quarantine and on trial, as people count them."""
        return ((subject, entry) for subject, entry in self._entries.items() if entry.until is not None)

    def forget(self, now: float) -> list[str]:
        """Drop what nothing was heard of for long; returns those that were in quarantine."""
        old = [s for s, e in self._entries.items() if now - e.heard_at >= self.policy.forget_after_s]
        return [subject for subject in old if self.clear(subject)]

"""Telling the platform, and the run's own directory, what happens.

Invariants: reporting never blocks training; what was accepted is delivered in order and at least once; a platform that
is away is tried again for ``outage_s`` and then ends the run with :class:`PlatformOutage`, not sooner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from rock.domain.errors import Fault, RockError
from rock.domain.outcome import Truncated, Void, outcome_label
from rock.sdk import EpisodeRecord, EpisodeRhythm, MetricPoint, QuotaExceeded, Rock, RunStatus, RunUpdate, TurnRecord
from roll_core.errors import PlatformOutage
from roll_core.rollout.work import Booking
from roll_core.training.lines import Lines
from roll_core.types import Trajectory, Turn

Phase = Literal["warm_start", "train", "eval"]
_BATCH = 64
RHYTHMS = "rhythm.jsonl"
_RETRY_S = 2.0
_CLOSE_MARGIN_S = 30.0
"""For a report that is under way when the patience ends."""


class Reporter(Protocol):
    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None: ...

    async def status(self, status: RunStatus, detail: str = "", summary: dict[str, Any] | None = None) -> None: ...

    def check(self) -> None:
        """Raises PlatformOutage when reports could not be delivered for too long."""
        ...

    async def close(self) -> None:
        """Deliver what is left."""
        ...


@runtime_checkable
class KeepsRhythms(Protocol):
    """A reporter that also keeps attention rhythms; the others need not know of them."""

    def rhythms(self, rhythms: Sequence[EpisodeRhythm]) -> None: ...


def report_rhythms(reporter: Reporter, rhythms: Sequence[EpisodeRhythm]) -> None:
    if rhythms and isinstance(reporter, KeepsRhythms):
        reporter.rhythms(rhythms)


@runtime_checkable
class FollowsWeights(Protocol):
    """A reporter that is also told when weights have reached every engine."""

    def published(self, version: int) -> None: ...


def report_published(reporter: Reporter, version: int) -> None:
    if isinstance(reporter, FollowsWeights):
        reporter.published(version)


class FileReporter:
    """``metrics.jsonl`` and ``episodes.jsonl`` in the run's directory, one JSON object per line, each bounded; and
    ``rhythm.jsonl`` where a recipe gives credit by attention rhythm."""

    def __init__(self, directory: Path, *, max_bytes: int = 512 << 20) -> None:
        self._metrics = Lines(directory / "metrics.jsonl", max_bytes)
        self._episodes = Lines(directory / "episodes.jsonl", max_bytes)
        self._rhythm_path, self._max_bytes = directory / RHYTHMS, max_bytes
        self._rhythms: Lines | None = None

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._metrics.append(MetricPoint(step=step, at=datetime.now(UTC), values=values).model_dump_json().encode())

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None:
        if booking.trajectory is not None:
            record = episode_record(booking.trajectory, booking, phase=phase, split=split)
            self._episodes.append(record.model_dump_json(exclude_defaults=True).encode())

    def rhythms(self, rhythms: Sequence[EpisodeRhythm]) -> None:
        if self._rhythms is None:
            self._rhythms = Lines(self._rhythm_path, self._max_bytes)
        for rhythm in rhythms:
            self._rhythms.append(rhythm.model_dump_json().encode())

    async def status(self, status: RunStatus, detail: str = "", summary: dict[str, Any] | None = None) -> None:
        return None

    def check(self) -> None:
        return None

    async def close(self) -> None:
        self._metrics.close()
        self._episodes.close()
        if self._rhythms is not None:
            self._rhythms.close()


@dataclass(slots=True)
class _Pending:
    metrics: list[MetricPoint]
    episodes: list[EpisodeRecord]
    rhythms: list[EpisodeRhythm] = field(default_factory=list)
    update: RunUpdate | None = None

    def __bool__(self) -> bool:
        return bool(self.metrics or self.episodes or self.rhythms or self.update)


class SdkReporter:
    """Through the SDK to the platform, in batches, from one task in the background."""

    def __init__(
        self, rock: Rock, run_id: str, *, outage_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rock = rock
        self._run_id = run_id
        self._outage_s = outage_s
        self._clock = clock
        self._pending = _Pending([], [])
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._failed: BaseException | None = None
        self._failing_since_s: float | None = None
        self._task = asyncio.get_running_loop().create_task(self._deliver(), name="reporter")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._pending.metrics.append(MetricPoint(step=step, at=datetime.now(UTC), values=values))
        self._notify()

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None:
        if booking.trajectory is not None:
            self._pending.episodes.append(episode_record(booking.trajectory, booking, phase=phase, split=split))
            self._notify()

    def rhythms(self, rhythms: Sequence[EpisodeRhythm]) -> None:
        self._pending.rhythms += rhythms
        self._notify()

    async def status(self, status: RunStatus, detail: str = "", summary: dict[str, Any] | None = None) -> None:
        self._pending.update = RunUpdate(status=status, detail=detail or None, summary=summary)
        self._notify()
        self.check()

    def check(self) -> None:
        if self._failed is None and self._task.done():
            self._failed = _ended_by_itself(self._task)
        if self._failed is not None:
            raise self._failed

    async def close(self) -> None:
        """Deliver what is left, for as long as an outage is tolerated."""
        self._closing = True
        self._wake.set()
        done, _ = await asyncio.wait([self._task], timeout=self._outage_s + _CLOSE_MARGIN_S)
        if not done:
            self._task.cancel()
            raise PlatformOutage(f"The last reports to the platform at {self._rock.url} did not get through.")
        if self._task.cancelled() or self._task.exception() is not None:
            raise _ended_by_itself(self._task)

    def _notify(self) -> None:
        self._wake.set()

    async def _deliver(self) -> None:
        while not (self._closing and not self._pending) and self._failed is None:
            await self._wake.wait()
            self._wake.clear()
            while self._pending and self._failed is None:
                await self._try_once()

    async def _try_once(self) -> None:
        try:
            await self._send()
            self._failing_since_s = None
        except RockError as error:
            since_s = self._failing_since_s = self._failing_since_s or self._clock()
            down_s = self._clock() - since_s
            hopeless = error.fault is Fault.CALLER and not isinstance(error, QuotaExceeded)
            if hopeless or down_s > self._outage_s:
                self._failed = PlatformOutage(
                    f"The run could not be reported to the platform at {self._rock.url} for {down_s:.0f} s: {error}"
                )
                return
            await asyncio.sleep(_RETRY_S)

    async def _send(self) -> None:
        pending = self._pending
        if pending.update is not None:
            update = pending.update
            await self._rock.update_run(self._run_id, update)
            if pending.update is update:
                pending.update = None
        if metrics := pending.metrics[:_BATCH]:
            await self._rock.report_metrics(self._run_id, metrics)
            del pending.metrics[: len(metrics)]
        if episodes := pending.episodes[:_BATCH]:
            await self._rock.report_episodes(self._run_id, episodes)
            del pending.episodes[: len(episodes)]
        if rhythms := pending.rhythms[:_BATCH]:
            await self._rock.report_rhythms(self._run_id, rhythms)
            del pending.rhythms[: len(rhythms)]


def _ended_by_itself(task: asyncio.Task[None]) -> PlatformOutage:
    """Nothing is reported any more, and nobody would have noticed."""
    why = None if task.cancelled() else task.exception()
    error = PlatformOutage(f"Reporting to the platform has ended by itself: {why!r}.")
    error.__cause__ = why
    return error


class Reporters:
    """Several reporters as one."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def metrics(self, step: int, values: dict[str, float]) -> None:
        for reporter in self._reporters:
            reporter.metrics(step, values)

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None:
        for reporter in self._reporters:
            reporter.episode(booking, phase=phase, split=split)

    def rhythms(self, rhythms: Sequence[EpisodeRhythm]) -> None:
        for reporter in self._reporters:
            report_rhythms(reporter, rhythms)

    def published(self, version: int) -> None:
        for reporter in self._reporters:
            report_published(reporter, version)

    async def status(self, status: RunStatus, detail: str = "", summary: dict[str, Any] | None = None) -> None:
        for reporter in self._reporters:
            await reporter.status(status, detail, summary)

    def check(self) -> None:
        for reporter in self._reporters:
            reporter.check()

    async def close(self) -> None:
        for reporter in self._reporters:
            await reporter.close()


# --- records ---------------------------------------------------------------------------------------------------------


def episode_record(trajectory: Trajectory, booking: Booking, *, phase: Phase, split: str) -> EpisodeRecord:
    outcome = trajectory.outcome
    cancelled = isinstance(outcome, Truncated) and outcome.reason.startswith("cancelled")
    void = isinstance(outcome, Void)
    counts = not void and not cancelled
    return EpisodeRecord(
        id=trajectory.id,
        group_id=trajectory.group_id,
        env=trajectory.env,
        task=trajectory.task,
        seed=trajectory.seed,
        split=split,
        phase=phase,
        step=booking.step,
        policy_version=trajectory.init_version,
        ledger=booking.state,
        outcome="cancelled" if cancelled else outcome_label(outcome),  # type: ignore[arg-type]
        reason=_reason(trajectory),
        reward=outcome.reward if counts and not isinstance(outcome, Void) else None,
        success=outcome.success if counts and not isinstance(outcome, Void) else None,
        sandbox_id=trajectory.sandbox_id,
        turns=tuple(_turn_record(t) for t in trajectory.turns),
        turn_count=len(trajectory.turns),
        generated_tokens=trajectory.spent_tokens,
        sandbox_s=trajectory.sandbox_s,
        recoveries=trajectory.recoveries,
        open_s=trajectory.open_s,
        reset_s=trajectory.reset_s,
        started_at=datetime.fromtimestamp(trajectory.started_at_s, UTC),
        ended_at=datetime.fromtimestamp(trajectory.ended_at_s, UTC),
    )


def _reason(trajectory: Trajectory) -> str:
    outcome = trajectory.outcome
    if isinstance(outcome, Void):
        return f"{outcome.cause}: {outcome.detail}" if outcome.detail else str(outcome.cause)
    return outcome.reason if isinstance(outcome, Truncated) else ""


def _turn_record(turn: Turn) -> TurnRecord:
    generation = turn.generation
    count = len(generation.token_ids)
    return TurnRecord(
        observation=turn.observation,
        response=turn.response,
        action=turn.action,
        reward=turn.reward,
        tokens=count,
        policy_version=max(generation.versions, default=0),
        mean_logprob=sum(generation.logprobs) / count if count else 0.0,
        generate_s=turn.generate_s,
        env_s=turn.env_s,
    )

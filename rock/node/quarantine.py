"""The images a node refuses: what counts for and against one, and what those who claim are told.

A failure counts against the image when nobody else can have been the cause: it did not start though the runtime works,
or it died by itself within seconds of being ready. What was killed from outside, or ran out of memory while somebody
worked in it, says nothing about the image.

What is refused is noted on disk beside the node's sockets: a node that is killed and started again goes on refusing it,
from its first claim on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter

from rock.domain.clock import Clock
from rock.domain.errors import (
    ImageNotFound,
    InvalidRequest,
    Quarantined,
    RockError,
    RuntimeUnavailable,
    StorageError,
    TaskQuarantined,
)
from rock.domain.quarantine import Book, Entry, Verdict
from rock.domain.sandbox import SandboxState
from rock.node.config import NodeConfig
from rock.node.record import Pool, Record
from rock.runtimes.task_images import is_task_image
from rock.wire.models import Evidence, QuarantineView, SandboxSpec

log = logging.getLogger(__name__)

# The machine's or the caller's fault, and said to whoever claims as it is.
_NOT_THE_IMAGE = (RuntimeUnavailable, StorageError, ImageNotFound, InvalidRequest)
_KILLED = frozenset({137, 143})
# Not: removed, paused, frozen (somebody did that to it), slow, disk and disk_quota (its user's doing).
_BY_ITSELF = frozenset({"exited", "oom", "guest_lost", "env_dead", "probe"})
_VIEWS = TypeAdapter(tuple[QuarantineView, ...])
_USED = frozenset({SandboxState.LEASED, SandboxState.SUSPECT})


class ImageQuarantine:
    """``emit(kind, subject, detail)`` tells the world of what is added and cleared."""

    def __init__(self, config: NodeConfig, clock: Clock, emit: Callable[[str, str, str], None]) -> None:
        self._config = config
        self._clock = clock
        self._emit = emit
        self._book = Book(config.quarantine)
        self._names: dict[str, str] = {}
        self.changed = asyncio.Event()
        """Something was added or cleared since this was reset."""

    # --- evidence

    def failed(self, record: Record, state: SandboxState, evidence: Evidence, error: RockError | None) -> bool:
        """Book the failure of ``record``, which was in ``state``. True: its image is in quarantine from now on."""
        now = self._clock.now()
        if state is SandboxState.STARTING:
            began_at, counts = record.requested_at, not isinstance(error, _NOT_THE_IMAGE)
        else:
            began_at = record.ready_at
            killed = evidence.exit_code in _KILLED and not evidence.oom_killed
            theirs = state in _USED and evidence.oom_killed
            young = now - record.ready_at < self._config.quick_death_s
            counts = young and not killed and not theirs and evidence.cause in _BY_ITSELF
        if not counts:
            return False
        verdict = self._book.failed(record.digest, began_at=began_at, now=now, reason=_reason(evidence))
        if verdict is not Verdict.ADDED:
            return False
        self._names[record.digest] = name_of(record.spec)
        self._emit("quarantine.added", record.digest, f"{name_of(record.spec)}: {_reason(evidence)}")
        self.changed.set()
        return True

    def succeeded(self, record: Record) -> None:
        """It has lived, or was of use to somebody."""
        record.survived = True
        if self._book.succeeded(record.digest, self._clock.now()) is Verdict.CLEARED:
            self._cleared(record.digest, "one was tried and lives")

    # --- what follows from it

    def refuses(self, digest: str) -> bool:
        return self._book.refuses(digest, self._clock.now()) is not None

    def on_trial(self, digest: str) -> bool:
        return self._book.on_trial(digest, self._clock.now())

    def check(self, pool: Pool) -> None:
        """Raises Quarantined, saying why and what to do."""
        if entry := self._book.refuses(pool.digest, self._clock.now()):
            raise self.error(pool, entry)

    def error(self, pool: Pool, entry: Entry | None = None) -> Quarantined:
        entry = entry or self._book.refuses(pool.digest, self._clock.now())
        failures, reason = (entry.failures, entry.reason) if entry else (0, "")
        minutes = max(1, round(((entry.until or 0.0) - self._clock.now()) / 60)) if entry else 0
        kind = TaskQuarantined if is_task_image(pool.spec.image) else Quarantined
        return kind(
            f"{name_of(pool.spec)} is in quarantine on node {self._config.name}: {failures} sandboxes in a row "
            f"failed, the last one: {reason}",
            hint=f"Mend it, then `rock quarantine clear {pool.digest}`. It is tried again by itself in {minutes} min.",
            cause=pool.last_error.cause if pool.last_error else "",
        )

    # --- looking and clearing

    def subjects(self) -> tuple[str, ...]:
        return tuple(subject for subject, _ in self._book.quarantined())

    def views(self) -> list[QuarantineView]:
        return list(self._views())

    def _views(self) -> Iterator[QuarantineView]:
        now, today = self._clock.now(), datetime.now(UTC)
        for subject, entry in self._book.quarantined():
            yield QuarantineView(
                kind="image",
                subject=subject,
                name=self._names.get(subject, subject),
                reason=entry.reason,
                failures=entry.failures,
                since=today - timedelta(seconds=now - entry.since),
                node=self._config.name,
                retry_at=today + timedelta(seconds=(entry.until or now) - now),
            )

    def restore(self, views: Sequence[QuarantineView]) -> None:
        """Those of before a restart. What is known already stays as it is."""
        now, today = self._clock.now(), datetime.now(UTC)
        for view in views:
            age_s = max(0.0, (today - view.since).total_seconds())
            self._names[view.subject] = view.name
            self._book.put(view.subject, failures=view.failures, reason=view.reason, age_s=age_s, now=now)
            self.changed.set()

    def clear(self, digest: str, why: str) -> bool:
        cleared = self._book.clear(digest)
        if cleared:
            self._cleared(digest, why)
        return cleared

    def forget(self) -> None:
        for digest in self._book.forget(self._clock.now()):
            self._cleared(digest, "nobody has asked for it for long")

    def _cleared(self, digest: str, why: str) -> None:
        self.changed.set()
        self._emit("quarantine.cleared", digest, f"{self._names.pop(digest, digest)}: {why}")


class QuarantineNote:
    """What a node refuses, on disk in ``run_dir``. Blocking."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "quarantine.json"

    def write(self, views: Sequence[QuarantineView]) -> None:
        """A note that cannot be written is missed only after a crash."""
        draft = self._path.with_suffix(".new")
        try:
            draft.write_bytes(_VIEWS.dump_json(tuple(views)))
            draft.replace(self._path)
        except OSError as error:
            log.warning("what is in quarantine could not be noted in %s: %s", self._path, error.strerror)

    def read(self) -> Sequence[QuarantineView]:
        """What cannot be understood was written by another version and counts as nothing."""
        try:
            return _VIEWS.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            log.warning("the note of what is in quarantine %s is not understood: %s", self._path, error)
            return ()


def name_of(spec: SandboxSpec) -> str:
    if spec.env and is_task_image(spec.image):
        return f"environment {spec.env!r} in image {spec.image!r}"
    return f"environment {spec.env!r}" if spec.env else f"image {spec.image!r}"


def sentence(evidence: Evidence) -> str:
    parts = [evidence.cause]
    if evidence.exit_code is not None:
        parts.append(f"exit code {evidence.exit_code}")
    if evidence.detail:
        parts.append(evidence.detail)
    return ": ".join(parts)


def _reason(evidence: Evidence) -> str:
    last = next((line.strip() for line in reversed(evidence.last_output) if line.strip()), "")
    return f"{sentence(evidence)}; its last words: {last[:300]}" if last else sentence(evidence)

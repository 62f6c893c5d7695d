"""What is in quarantine, over all nodes: images as the nodes found them, tasks as those who play them report.

A node knows its images best and refuses claims of them by itself; here they are gathered, stored and cleared. Tasks are
judged here: control alone hears of all who play one. The store holds what survives a restart: :meth:`open` gives a node
its images back before its first claim.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rock.control.history import History
from rock.control.nodes import NodeBook
from rock.domain.clock import Clock
from rock.domain.errors import NotFound, RockError
from rock.domain.intensity import IntensityPolicy
from rock.domain.quarantine import Book, Entry, QuarantinePolicy, Verdict
from rock.store.fleet import FleetStore
from rock.wire.handle import NodeHandle
from rock.wire.models import EventView, QuarantineView, TaskFailure

log = logging.getLogger(__name__)

# A report takes this long at most, mostly: failures that were side by side may be heard of one after the other.
REPORT_SLACK_S = 1.0
# Only failures of a task are reported, never successes, so its rule is the window alone: the third within an hour.
TASK_POLICY = QuarantinePolicy(IntensityPolicy(2, 3600.0), max_in_row=1000, retry_after_s=3600.0)


class QuarantineService:
    def __init__(self, nodes: NodeBook, store: FleetStore, history: History, clock: Clock) -> None:
        self._nodes = nodes
        self._store = store
        self._history = history
        self._clock = clock
        self._tasks = Book(TASK_POLICY)
        self._stored: dict[tuple[str, str], QuarantineView] = {}
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Raises StorageError."""
        for view in await self._store.quarantined():
            self._stored[view.kind, view.subject] = view
            if view.kind == "task":
                age_s = max(0.0, (datetime.now(UTC) - view.since).total_seconds())
                now = self._clock.now()
                self._tasks.put(view.subject, failures=view.failures, reason=view.reason, age_s=age_s, now=now)
        for node in self._nodes:
            images = [v for v in self._stored.values() if v.kind == "image" and node.name in nodes_of(v)]
            try:
                await node.restore_quarantine(images)
            except RockError as error:
                log.info("node=%s is not told what it refused before: %s", node.name, error)

    # --- looking

    async def views(self) -> list[QuarantineView]:
        """The youngest first. Of a node that does not answer: what was last known."""
        found, silent = await self._ask_nodes()
        views = _merged([*found, *self._task_views(), *self._of_nodes(silent)])
        return sorted(views.values(), key=lambda view: view.since, reverse=True)

    async def _ask_nodes(self) -> tuple[list[QuarantineView], set[str]]:
        """What the nodes say, and the names of those that say nothing."""

        async def one(node: NodeHandle) -> Sequence[QuarantineView] | None:
            try:
                return await node.quarantine()
            except RockError as error:
                log.info("node=%s does not tell its quarantine: %s", node.name, error)
                return None

        nodes = list(self._nodes)
        answers = await asyncio.gather(*(one(node) for node in nodes))
        silent = {node.name for node, answer in zip(nodes, answers, strict=True) if answer is None}
        return [view for answer in answers if answer is not None for view in answer], silent

    def _of_nodes(self, names: set[str]) -> list[QuarantineView]:
        return [
            view.model_copy(update={"node": ", ".join(here)})
            for view in self._stored.values()
            if view.kind == "image" and (here := sorted(names & nodes_of(view)))
        ]

    def _task_views(self) -> list[QuarantineView]:
        return [self._task_view(subject, entry) for subject, entry in self._tasks.quarantined()]

    def _task_view(self, subject: str, entry: Entry) -> QuarantineView:
        now, today = self._clock.now(), datetime.now(UTC)
        env, _, task = subject.partition("/")
        return QuarantineView(
            kind="task",
            subject=subject,
            name=f"task {task!r} of environment {env!r}",
            reason=entry.reason,
            failures=entry.failures,
            since=today - timedelta(seconds=now - entry.since),
            retry_at=today + timedelta(seconds=(entry.until or now) - now),
        )

    # --- tasks

    async def report(self, failure: TaskFailure) -> QuarantineView | None:
        """The environment failed at a task. The task's quarantine if it is in it by now: leave it out."""
        subject, now = f"{failure.env}/{failure.task}", self._clock.now()
        verdict = self._tasks.failed(
            subject, began_at=now - failure.elapsed_s - REPORT_SLACK_S, now=now, reason=failure.reason
        )
        if verdict is Verdict.ADDED:
            self._event("quarantine.added", subject, failure.reason)
        entry = self._tasks.refuses(subject, now)
        return self._task_view(subject, entry) if entry is not None else None

    # --- clearing

    async def clear(self, subject: str) -> None:
        """Try it again from now on. Raises NotFound if it is not in quarantine, StorageError."""
        if self._tasks.clear(subject):
            self._event("quarantine.cleared", subject, "somebody cleared it")
            cleared = True
        else:
            answers = await asyncio.gather(
                *(node.clear_quarantine(subject) for node in self._nodes), return_exceptions=True
            )
            cleared = any(answer is True for answer in answers)
            failed = next((answer for answer in answers if isinstance(answer, BaseException)), None)
            if failed is not None and not cleared:
                raise failed
        if not cleared:
            raise NotFound(f"{subject!r} is not in quarantine", hint="`rock quarantine list` shows what is.")
        await self.reconcile()

    # --- the store

    async def reconcile(self) -> None:
        """Write down what has changed. Raises StorageError; then it is written the next time."""
        async with self._lock:
            for subject in self._tasks.forget(self._clock.now()):
                self._event("quarantine.cleared", subject, "nobody has played it for long")
            found, silent = await self._ask_nodes()
            now = _merged([*found, *self._task_views(), *self._of_nodes(silent)])
            changed = [v for key, v in now.items() if _lasting(v) != _lasting(self._stored.get(key))]
            gone = [key for key in self._stored if key not in now]
            if changed or gone:
                await self._store.save_quarantine(changed, gone)
            self._stored = now

    def _event(self, kind: str, subject: str, detail: str) -> None:
        self._history.add_event(EventView(at=datetime.now(UTC), kind=kind, subject=subject, detail=detail))


def nodes_of(view: QuarantineView) -> set[str]:
    return {name for name in view.node.split(", ") if name}


def _merged(views: Sequence[QuarantineView]) -> dict[tuple[str, str], QuarantineView]:
    """One view for each subject, whichever nodes refuse it."""
    out: dict[tuple[str, str], QuarantineView] = {}
    for view in views:
        other = out.setdefault((view.kind, view.subject), view)
        if other is not view:
            last = max(other, view, key=lambda v: v.since)
            update = {
                "failures": other.failures + view.failures,
                "since": min(other.since, view.since),
                "node": ", ".join(sorted(nodes_of(other) | nodes_of(view))),
            }
            out[view.kind, view.subject] = last.model_copy(update=update)
    return out


def _lasting(view: QuarantineView | None) -> tuple[object, ...]:
    """What decides whether a row is written anew. Times are reckoned from clocks and differ by microseconds."""
    return () if view is None else (view.reason, view.failures, view.node)

"""Runs as their trainers report them: state, metrics, episodes. A thin layer: ids, times and events over the store."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from rock.control.history import History
from rock.store.rhythms import RhythmStore
from rock.store.runs import RunStore
from rock.wire.models import (
    EpisodeFilter,
    EpisodePage,
    EpisodeRecord,
    EventView,
    LatencyView,
    LedgerView,
    MetricPoint,
    RunCreate,
    RunUpdate,
    RunView,
)
from rock.wire.rhythm import EpisodeRhythm, RhythmView


class RunService:
    def __init__(self, store: RunStore, rhythms: RhythmStore, history: History) -> None:
        self._store = store
        self._rhythms = rhythms
        self._history = history

    async def create(self, request: RunCreate) -> RunView:
        now = datetime.now(UTC)
        if request.resumed_from:
            await self._store.run(request.resumed_from)  # NotFound rather than a run that resumes nothing
        view = RunView(
            id=f"run-{secrets.token_hex(5)}",
            name=request.name,
            status="starting",
            recipe=request.recipe,
            total_steps=request.total_steps,
            created_at=now,
            updated_at=now,
        )
        await self._store.create(view, resumed_from=request.resumed_from)
        detail = f"resumed from {request.resumed_from}" if request.resumed_from else request.name
        self._event("run.started", view.id, detail)
        return view

    async def update(self, run_id: str, change: RunUpdate) -> RunView:
        view = await self._store.update(run_id, change, datetime.now(UTC))
        if change.status is not None:
            self._event(f"run.{change.status}", run_id, change.detail or "")
        return view

    async def run(self, run_id: str) -> RunView:
        return await self._store.run(run_id)

    async def runs(self) -> list[RunView]:
        return await self._store.runs()

    async def add_metrics(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        await self._store.add_metrics(run_id, points, datetime.now(UTC))

    async def metrics(self, run_id: str, since_step: int) -> list[MetricPoint]:
        await self._store.run(run_id)
        return await self._store.metrics(run_id, since_step)

    async def newest_metrics(self, run_id: str, steps: int) -> dict[str, float]:
        return await self._store.newest_metrics(run_id, steps)

    async def add_episodes(self, run_id: str, episodes: Sequence[EpisodeRecord]) -> None:
        await self._store.add_episodes(run_id, episodes, datetime.now(UTC))

    async def episodes(self, run_id: str, which: EpisodeFilter, *, limit: int, offset: int) -> EpisodePage:
        await self._store.run(run_id)
        return await self._store.episodes(run_id, which, limit=limit, offset=offset)

    async def episode(self, run_id: str, episode_id: str) -> EpisodeRecord:
        return await self._store.episode(run_id, episode_id)

    async def latencies(self, run_id: str) -> list[LatencyView]:
        await self._store.run(run_id)
        return await self._store.latencies(run_id)

    async def ledger(self, run_id: str) -> LedgerView:
        await self._store.run(run_id)
        return await self._store.ledger(run_id)

    async def add_rhythms(self, run_id: str, rhythms: Sequence[EpisodeRhythm]) -> None:
        await self._rhythms.add(run_id, rhythms)

    async def rhythms(self, run_id: str) -> list[RhythmView]:
        return await self._rhythms.views(run_id)

    async def rhythm(self, run_id: str, episode_id: str) -> EpisodeRhythm:
        return await self._rhythms.rhythm(run_id, episode_id)

    def _event(self, kind: str, run_id: str, detail: str) -> None:
        self._history.add_event(
            EventView(at=datetime.now(UTC), kind=kind, subject=run_id, detail=detail, run_id=run_id)
        )

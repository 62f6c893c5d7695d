"""Routes of runs: what trainers report, and what dashboards read."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query

from rock.control.control import Control
from rock.domain.outcome import LedgerState
from rock.wire.models import (
    EpisodeFilter,
    EpisodePage,
    EpisodeRecord,
    LatencyView,
    LedgerView,
    MetricPoint,
    RunCreate,
    RunUpdate,
    RunView,
)
from rock.wire.rhythm import EpisodeRhythm, RhythmView

RunId = Annotated[str, Path(description="`run-…`", max_length=64)]


def run_router(control: Control) -> APIRouter:
    router = APIRouter(prefix="/runs", tags=["runs"])
    _runs(router, control)
    _metrics(router, control)
    _episodes(router, control)
    _rhythms(router, control)
    _sums(router, control)
    return router


def _runs(router: APIRouter, control: Control) -> None:
    @router.post("", status_code=201, summary="Begin a run")
    async def create(request: RunCreate) -> RunView:
        return await control.runs.create(request)

    @router.get("", summary="The runs, newest first")
    async def runs() -> list[RunView]:
        return await control.runs.runs()

    @router.get("/{run_id}", summary="One run")
    async def run(run_id: RunId) -> RunView:
        return await control.runs.run(run_id)

    @router.patch("/{run_id}", summary="Report a run's status, or add to its summary")
    async def update(run_id: RunId, change: RunUpdate) -> RunView:
        return await control.runs.update(run_id, change)


def _metrics(router: APIRouter, control: Control) -> None:
    @router.post("/{run_id}/metrics", status_code=204, summary="Report the numbers of training steps")
    async def add_metrics(run_id: RunId, points: list[MetricPoint]) -> None:
        """A step that was reported before is merged with what it had, the later value of a name winning."""
        await control.runs.add_metrics(run_id, points)

    @router.get("/{run_id}/metrics", summary="The numbers of the training steps")
    async def metrics(run_id: RunId, since_step: Annotated[int, Query(ge=0)] = 0) -> list[MetricPoint]:
        return await control.runs.metrics(run_id, since_step)


def _episodes(router: APIRouter, control: Control) -> None:
    @router.post("/{run_id}/episodes", status_code=204, summary="Book episodes in the ledger")
    async def add_episodes(run_id: RunId, episodes: list[EpisodeRecord]) -> None:
        """An id that was reported before is replaced, unless what is there is newer: a report may be sent again, and in
        any order."""
        await control.runs.add_episodes(run_id, episodes)

    @router.get("/{run_id}/episodes", summary="A page of episodes, newest first, without turns")
    async def episodes(
        run_id: RunId,
        phase: Literal["", "warm_start", "train", "eval"] = "",
        outcome: Literal["", "completed", "truncated", "void", "cancelled"] = "",
        ledger: LedgerState | None = None,
        success: Annotated[bool | None, Query(description="False: the policy failed; void is neither.")] = None,
        reward_min: Annotated[float | None, Query(description="Inclusive; leaves out those without a reward.")] = None,
        reward_max: Annotated[float | None, Query(description="Inclusive; leaves out those without a reward.")] = None,
        group: Annotated[str, Query(max_length=64, description="The id of their group.")] = "",
        task: Annotated[str, Query(max_length=256, description="Part of the task's name.")] = "",
        text: Annotated[
            str, Query(max_length=256, description="Words, each in the task, reason, episode's or sandbox's id.")
        ] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> EpisodePage:
        which = EpisodeFilter(
            phase=phase, outcome=outcome, ledger=ledger, success=success, reward_min=reward_min, reward_max=reward_max,
            group=group, task=task, text=text,
        )  # fmt: skip
        return await control.runs.episodes(run_id, which, limit=limit, offset=offset)

    @router.get("/{run_id}/episodes/{episode_id}", summary="One episode, turn by turn")
    async def episode(run_id: RunId, episode_id: Annotated[str, Path(max_length=64)]) -> EpisodeRecord:
        return await control.runs.episode(run_id, episode_id)


def _rhythms(router: APIRouter, control: Control) -> None:
    @router.post("/{run_id}/rhythm", status_code=204, summary="Report the attention rhythm of episodes")
    async def add_rhythms(run_id: RunId, rhythms: list[EpisodeRhythm]) -> None:
        """An episode that was reported before is replaced. The latest 500 of a run are kept."""
        await control.runs.add_rhythms(run_id, rhythms)

    @router.get("/{run_id}/rhythm", summary="Recorded attention rhythms, the latest step first, without tokens")
    async def rhythms(run_id: RunId) -> list[RhythmView]:
        return await control.runs.rhythms(run_id)

    @router.get("/{run_id}/rhythm/{episode_id}", summary="The attention rhythm of one episode, token by token")
    async def rhythm(run_id: RunId, episode_id: Annotated[str, Path(max_length=64)]) -> EpisodeRhythm:
        return await control.runs.rhythm(run_id, episode_id)


def _sums(router: APIRouter, control: Control) -> None:
    @router.get("/{run_id}/latencies", summary="What episodes spent their time on, by environment")
    async def latencies(run_id: RunId) -> list[LatencyView]:
        """Kept with every report: an episode counts once, when it is first reported as ended."""
        return await control.runs.latencies(run_id)

    @router.get("/{run_id}/ledger", summary="How every dispatched episode ended")
    async def ledger(run_id: RunId) -> LedgerView:
        """`conserved` says whether the sums, kept with every report, agree with the number of episodes there are."""
        return await control.runs.ledger(run_id)

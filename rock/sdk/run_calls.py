"""What `Rock` reports and asks about training runs: metrics, episodes, ledger, rhythm. A call each, no state."""

from __future__ import annotations

from collections.abc import Sequence

from rock.domain.outcome import LedgerState
from rock.sdk.transport import Transport, part
from rock.wire.models import (
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

EPISODES_PER_REQUEST = 200


class RunCalls:
    """Part of :class:`rock.sdk.Rock`, whose text holds for every method here."""

    _transport: Transport

    async def create_run(self, run: RunCreate) -> RunView:
        """Register a training run."""
        view: RunView = await self._transport.request("POST", "runs", body=run, kind=RunView)
        return view

    async def update_run(self, run_id: str, update: RunUpdate) -> RunView:
        """Change a run's status or detail, or add to its summary. Raises NotFound (caller)."""
        view: RunView = await self._transport.request(
            "PATCH", f"runs/{part(run_id)}", body=update, kind=RunView, idempotent=True
        )
        return view

    async def runs(self) -> list[RunView]:
        """Every run, the youngest first."""
        return await self._transport.get(list[RunView], "runs")

    async def run(self, run_id: str) -> RunView:
        """One run. Raises NotFound (caller)."""
        return await self._transport.get(RunView, f"runs/{part(run_id)}")

    async def report_metrics(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Store the numbers of training steps; a step reported again replaces the first. Raises NotFound (caller)."""
        await self._transport.request("POST", f"runs/{part(run_id)}/metrics", body=list(points), idempotent=True)

    async def metrics(self, run_id: str, *, since_step: int = 0) -> list[MetricPoint]:
        """The numbers of every step from ``since_step`` on, in order. Raises NotFound (caller)."""
        return await self._transport.get(list[MetricPoint], f"runs/{part(run_id)}/metrics", since_step=since_step)

    async def report_episodes(self, run_id: str, episodes: Sequence[EpisodeRecord]) -> None:
        """Book episodes in the run's ledger; the same id again replaces the record. Raises NotFound (caller)."""
        for start in range(0, len(episodes), EPISODES_PER_REQUEST):
            some = list(episodes[start : start + EPISODES_PER_REQUEST])
            await self._transport.request("POST", f"runs/{part(run_id)}/episodes", body=some, idempotent=True)

    async def episodes(
        self,
        run_id: str,
        *,
        phase: str | None = None,
        outcome: str | None = None,
        ledger: LedgerState | str | None = None,
        success: bool | None = None,
        reward_min: float | None = None,
        reward_max: float | None = None,
        group: str | None = None,
        task: str | None = None,
        text: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> EpisodePage:
        """A page of the run's episodes, the latest first, without their turns. Raises NotFound (caller).

        Args:
            success: True or False for the episodes that the policy won or lost; void ones are neither.
            reward_min: inclusive, as is ``reward_max``; both leave out episodes without a reward.
            group: the id of their group, exactly.
            task: part of the task's name.
            text: words, each of which occurs in the task, the reason, or the id of the episode or its sandbox.
        """
        return await self._transport.get(
            EpisodePage,
            f"runs/{part(run_id)}/episodes",
            phase=phase,
            outcome=outcome,
            ledger=ledger,
            success=success,
            reward_min=reward_min,
            reward_max=reward_max,
            group=group,
            task=task,
            text=text,
            limit=limit,
            offset=offset,
        )

    async def episode(self, run_id: str, episode_id: str) -> EpisodeRecord:
        """One episode with its turns. Raises NotFound (caller)."""
        return await self._transport.get(EpisodeRecord, f"runs/{part(run_id)}/episodes/{part(episode_id)}")

    async def ledger(self, run_id: str) -> LedgerView:
        """Where every dispatched episode of the run ended. Raises NotFound (caller)."""
        return await self._transport.get(LedgerView, f"runs/{part(run_id)}/ledger")

    async def latencies(self, run_id: str) -> list[LatencyView]:
        """What the run's episodes spent their time on, by environment. Raises NotFound (caller)."""
        return await self._transport.get(list[LatencyView], f"runs/{part(run_id)}/latencies")

    async def report_rhythms(self, run_id: str, rhythms: Sequence[EpisodeRhythm]) -> None:
        """Keep the attention rhythm of episodes; the same id again replaces it. Raises NotFound (caller)."""
        await self._transport.request("POST", f"runs/{part(run_id)}/rhythm", body=list(rhythms), idempotent=True)

    async def rhythms(self, run_id: str) -> list[RhythmView]:
        """The run's recorded attention rhythms, the latest step first, without tokens. Raises NotFound (caller)."""
        return await self._transport.get(list[RhythmView], f"runs/{part(run_id)}/rhythm")

    async def rhythm(self, run_id: str, episode_id: str) -> EpisodeRhythm:
        """The attention rhythm of one episode. Raises NotFound (caller), also where it was not recorded."""
        return await self._transport.get(EpisodeRhythm, f"runs/{part(run_id)}/rhythm/{part(episode_id)}")

"""Repository of attention rhythms: what runs report of single episodes, the latest steps of each.

Invariants: reporting an episode again replaces it; of a run at most ``KEPT`` are there after every report.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select

from rock.domain.errors import NotFound
from rock.store.database import Database, whole
from rock.store.runs import unknown_run
from rock.store.tables import RhythmRow, RunRow
from rock.store.upsert import upsert
from rock.wire.rhythm import KEPT, EpisodeRhythm, RhythmView


class RhythmStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    @whole
    async def add(self, run_id: str, rhythms: Sequence[EpisodeRhythm]) -> None:
        """Raises NotFound when there is no such run."""
        rows = {
            r.episode_id: {
                "run_id": run_id,
                "episode_id": r.episode_id,
                "step": r.step,
                "summary": _stored(r.view()),
                "record": _stored(r),
            }
            for r in rhythms
        }
        async with self._db.write() as connection:
            if await connection.scalar(select(RunRow.id).where(RunRow.id == run_id)) is None:
                raise unknown_run(run_id)
            await upsert(connection, RhythmRow, list(rows.values()))
            mine = RhythmRow.run_id == run_id
            kept = select(RhythmRow.episode_id).where(mine)
            kept = kept.order_by(RhythmRow.step.desc(), RhythmRow.episode_id.desc()).limit(KEPT)
            old = delete(RhythmRow).where(mine, RhythmRow.episode_id.not_in(kept.scalar_subquery()))
            await connection.execute(old)

    @whole
    async def views(self, run_id: str) -> list[RhythmView]:
        """The latest step first. Raises NotFound when there is no such run."""
        query = select(RhythmRow.summary).where(RhythmRow.run_id == run_id)
        query = query.order_by(RhythmRow.step.desc(), RhythmRow.episode_id.desc())
        async with self._db.read() as connection:
            if await connection.scalar(select(RunRow.id).where(RunRow.id == run_id)) is None:
                raise unknown_run(run_id)
            return [RhythmView(**row.summary) for row in (await connection.execute(query)).all()]

    @whole
    async def rhythm(self, run_id: str, episode_id: str) -> EpisodeRhythm:
        """Raises NotFound when the episode was not recorded."""
        query = select(RhythmRow.record).where(RhythmRow.run_id == run_id, RhythmRow.episode_id == episode_id)
        async with self._db.read() as connection:
            record = await connection.scalar(query)
        if record is None:
            raise NotFound(
                f"run {run_id} has no rhythm of episode {episode_id!r}",
                hint=f"GET /v1/runs/{run_id}/rhythm lists them.",
            )
        return EpisodeRhythm(**record)


def _stored(record: RhythmView) -> dict[str, object]:
    return record.model_dump(mode="json")

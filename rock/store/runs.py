"""Repository of runs: their state, metrics, episodes, and the ledger's sums.

Invariants: whatever is reported of a run moves its ``updated_at``; reporting an episode or a metric point again
replaces it (at-least-once is safe), unless what is there is newer (so is any order); the sums in the ledger equal what
a scan of the episodes would give, after every transaction; counting and summing never scan episodes, except to look
for words and successes, and to check the ledger.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, literal, or_, select, union_all, update

from rock.domain.errors import NotFound
from rock.domain.outcome import LedgerState
from rock.store import latencies
from rock.store.database import Database, whole
from rock.store.tables import EpisodeRow, LedgerRow, MetricRow, RunRow, TurnsRow
from rock.store.upsert import in_chunks, upsert
from rock.wire.models import (
    EpisodeFilter,
    EpisodePage,
    EpisodeRecord,
    LatencyView,
    LedgerView,
    MetricPoint,
    RunUpdate,
    RunView,
)

_IDS_AT_ONCE = 500
_ROWS = "rows"  # no account has this name
EVERY_EPISODE = EpisodeFilter()

LedgerKey = tuple[str, str, str]
"""Phase, outcome, account: what the ledger's sums are kept by."""


class RunStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    # --- runs

    @whole
    async def create(self, view: RunView, *, resumed_from: str = "") -> None:
        async with self._db.write() as connection:
            await connection.execute(insert(RunRow).values(**view.model_dump(), resumed_from=resumed_from))

    @whole
    async def update(self, run_id: str, change: RunUpdate, at: datetime) -> RunView:
        async with self._db.write() as connection:
            query = select(RunRow.__table__).where(RunRow.id == run_id).with_for_update()
            row = (await connection.execute(query)).first()
            if row is None:
                raise unknown_run(run_id)
            values: dict[str, Any] = {"updated_at": at}
            if change.status is not None:
                values["status"] = change.status
            if change.detail is not None:
                values["detail"] = change.detail
            if change.total_steps is not None:
                values["total_steps"] = change.total_steps
            if change.summary is not None:
                values["summary"] = {**row.summary, **_finite(change.summary)}
            await connection.execute(update(RunRow).where(RunRow.id == run_id).values(values))
        return _run_view({**row._mapping, **values})

    @whole
    async def run(self, run_id: str) -> RunView:
        async with self._db.read() as connection:
            row = (await connection.execute(select(RunRow.__table__).where(RunRow.id == run_id))).first()
        if row is None:
            raise unknown_run(run_id)
        return _run_view(dict(row._mapping))

    @whole
    async def runs(self, limit: int = 200) -> list[RunView]:
        """The newest first."""
        query = select(RunRow.__table__).order_by(RunRow.created_at.desc(), RunRow.id).limit(limit)
        async with self._db.read() as connection:
            return [_run_view(dict(row._mapping)) for row in (await connection.execute(query)).all()]

    # --- metrics

    @whole
    async def add_metrics(self, run_id: str, points: Sequence[MetricPoint], at: datetime) -> None:
        """Values of a step that was reported before are merged into it, name by name, the later one winning.

        ``at``: now.
        """
        merged: dict[int, MetricPoint] = {}
        for point in points:
            values = {**(merged[point.step].values if point.step in merged else {}), **_finite(point.values)}
            merged[point.step] = MetricPoint(step=point.step, at=point.at, values=values)
        if not merged:
            return
        async with self._db.write() as connection:
            step_before = await connection.scalar(select(RunRow.step).where(RunRow.id == run_id))
            if step_before is None:
                raise unknown_run(run_id)
            query = select(MetricRow.step, MetricRow.numbers).where(
                MetricRow.run_id == run_id, MetricRow.step.in_(list(merged))
            )
            before = {row[0]: row[1] for row in (await connection.execute(query)).all()}
            rows = [
                {"run_id": run_id, "step": p.step, "at": p.at, "numbers": {**before.get(p.step, {}), **p.values}}
                for p in merged.values()
            ]
            await upsert(connection, MetricRow, rows)
            values = {"step": max(step_before, *merged), "updated_at": at}
            await connection.execute(update(RunRow).where(RunRow.id == run_id).values(values))

    @whole
    async def metrics(self, run_id: str, since_step: int = 0) -> list[MetricPoint]:
        query = (
            select(MetricRow.step, MetricRow.at, MetricRow.numbers)
            .where(MetricRow.run_id == run_id, MetricRow.step >= since_step)
            .order_by(MetricRow.step)
        )
        async with self._db.read() as connection:
            rows = (await connection.execute(query)).all()
        return [MetricPoint(step=step, at=at, values=values) for step, at, values in rows]

    @whole
    async def newest_metrics(self, run_id: str, steps: int) -> dict[str, float]:
        """The last value of each name within the newest ``steps`` steps; empty for a run without metrics."""
        query = select(MetricRow.numbers).where(MetricRow.run_id == run_id).order_by(MetricRow.step.desc()).limit(steps)
        async with self._db.read() as connection:
            newest_first = list((await connection.execute(query)).scalars())
        return {name: value for numbers in reversed(newest_first) for name, value in numbers.items()}

    # --- episodes

    @whole
    async def add_episodes(self, run_id: str, episodes: Sequence[EpisodeRecord], at: datetime) -> None:
        """``at``: now."""
        latest: dict[str, EpisodeRecord] = {}
        for episode in episodes:
            if episode.id not in latest or _age(episode) >= _age(latest[episode.id]):
                latest[episode.id] = episode
        if not latest:
            return
        async with self._db.write() as connection:
            # First, because it also keeps another process from booking on this run until we are done.
            found = await connection.execute(update(RunRow).where(RunRow.id == run_id).values(updated_at=at))
            if not found.rowcount:
                raise unknown_run(run_id)
            changes: dict[LedgerKey, list[int]] = defaultdict(lambda: [0, 0, 0])
            ended_before: set[str] = set()
            for ids in in_chunks(list(latest), _IDS_AT_ONCE):
                query = select(
                    EpisodeRow.id,
                    EpisodeRow.ended_at,
                    EpisodeRow.phase,
                    EpisodeRow.outcome,
                    EpisodeRow.ledger,
                    EpisodeRow.generated_tokens,
                    EpisodeRow.sandbox_s,
                ).where(EpisodeRow.run_id == run_id, EpisodeRow.id.in_(ids))
                for row in (await connection.execute(query)).all():
                    if row.ledger != LedgerState.IN_FLIGHT:
                        ended_before.add(row.id)
                    if _age(latest[row.id]) < (row.ledger != LedgerState.IN_FLIGHT, row.ended_at):
                        del latest[row.id]
                    else:
                        _book(changes[row.phase, row.outcome, row.ledger], -1, row.generated_tokens, row.sandbox_s)
            for episode in latest.values():
                key = (episode.phase, episode.outcome, episode.ledger.value)
                _book(changes[key], 1, episode.generated_tokens, episode.sandbox_s)
            await upsert(connection, EpisodeRow, [_episode_values(run_id, e) for e in latest.values()])
            turns = [
                {"run_id": run_id, "episode_id": e.id, "turns": [t.model_dump(mode="json") for t in e.turns]}
                for e in latest.values()
            ]
            await upsert(connection, TurnsRow, turns)
            sums = [
                {
                    "run_id": run_id,
                    "phase": phase,
                    "outcome": outcome,
                    "account": account,
                    "episodes": count,
                    "tokens": tokens,
                    "sandbox_us": sandbox_us,
                }
                for (phase, outcome, account), (count, tokens, sandbox_us) in sorted(changes.items())
                if count or tokens or sandbox_us
            ]
            await upsert(connection, LedgerRow, sums, add=("episodes", "tokens", "sandbox_us"))
            new = (e for e in latest.values() if e.ledger is not LedgerState.IN_FLIGHT and e.id not in ended_before)
            await latencies.count(connection, run_id, new)

    @whole
    async def latencies(self, run_id: str) -> list[LatencyView]:
        async with self._db.read() as connection:
            return await latencies.views(connection, run_id)

    @whole
    async def episodes(
        self, run_id: str, which: EpisodeFilter = EVERY_EPISODE, *, limit: int = 100, offset: int = 0
    ) -> EpisodePage:
        """The newest first, without turns. ``total`` comes from the ledger's sums where they know it."""
        # The page's keys first, from an index alone: skipping 100,000 wide rows would read them all.
        keys = select(EpisodeRow.ended_at, EpisodeRow.id).where(EpisodeRow.run_id == run_id, *_conditions(which))
        if _summed(which):
            count = select(func.coalesce(func.sum(LedgerRow.episodes), 0)).where(
                LedgerRow.run_id == run_id, *_sum_conditions(which)
            )
        else:
            count = select(func.count()).select_from(keys.subquery())
        keys = keys.order_by(EpisodeRow.ended_at.desc(), EpisodeRow.id.desc()).limit(limit).offset(offset)
        async with self._db.read() as connection:
            total = int(await connection.scalar(count) or 0)
            ids = [row.id for row in (await connection.execute(keys)).all()] if offset < total else []
            rows: list[Any] = []
            for some in in_chunks(ids, _IDS_AT_ONCE):
                query = select(EpisodeRow.__table__).where(EpisodeRow.run_id == run_id, EpisodeRow.id.in_(some))
                rows += (await connection.execute(query)).all()
        rows.sort(key=lambda row: (row.ended_at, row.id), reverse=True)
        return EpisodePage(total=total, episodes=tuple(_episode(dict(row._mapping)) for row in rows))

    @whole
    async def episode(self, run_id: str, episode_id: str) -> EpisodeRecord:
        async with self._db.read() as connection:
            query = select(EpisodeRow.__table__).where(EpisodeRow.run_id == run_id, EpisodeRow.id == episode_id)
            row = (await connection.execute(query)).first()
            if row is None:
                raise NotFound(f"run {run_id} has no episode {episode_id!r}", hint=f"GET /v1/runs/{run_id}/episodes")
            turns = await connection.scalar(
                select(TurnsRow.turns).where(TurnsRow.run_id == run_id, TurnsRow.episode_id == episode_id)
            )
        return _episode({**row._mapping, "turns": turns or []})

    @whole
    async def ledger(self, run_id: str) -> LedgerView:
        """``dispatched`` is the number of episodes there are, the accounts are the sums kept with every report: they
        are counted apart, and compared. In one statement, so that no report comes between."""
        sums = (
            select(
                LedgerRow.account.label("account"),
                func.sum(LedgerRow.episodes).label("count"),
                func.sum(LedgerRow.tokens).label("tokens"),
                func.sum(LedgerRow.sandbox_us).label("sandbox_us"),
            )
            .where(LedgerRow.run_id == run_id)
            .group_by(LedgerRow.account)
        )
        rows_there_are = select(literal(_ROWS), func.count(), literal(0), literal(0)).where(EpisodeRow.run_id == run_id)
        async with self._db.read() as connection:
            rows = (await connection.execute(union_all(sums, rows_there_are))).all()
        accounts = dict.fromkeys(LedgerState, 0)
        tokens = dict.fromkeys(LedgerState, 0)
        sandbox_s = dict.fromkeys(LedgerState, 0.0)
        dispatched = 0
        for account, count, token_sum, sandbox_us in rows:
            if account == _ROWS:
                dispatched = int(count)
                continue
            state = LedgerState(account)
            accounts[state], tokens[state], sandbox_s[state] = int(count), int(token_sum), int(sandbox_us) / 1e6
        return LedgerView(
            run_id=run_id,
            dispatched=dispatched,
            accounts=accounts,
            tokens=tokens,
            sandbox_s=sandbox_s,
            conserved=dispatched == sum(accounts.values())
            and min(accounts.values()) >= 0
            and min(tokens.values()) >= 0,
        )


def _summed(which: EpisodeFilter) -> bool:
    """Whether the ledger's sums can tell how many there are."""
    unsummed = (which.success, which.reward_min, which.reward_max)
    return all(value is None for value in unsummed) and not (which.group or which.task or which.text.split())


def _conditions(which: EpisodeFilter) -> list[ColumnElement[bool]]:
    row = EpisodeRow
    found: list[ColumnElement[bool]] = []
    if which.phase:
        found.append(row.phase == which.phase)
    if which.outcome:
        found.append(row.outcome == which.outcome)
    if which.ledger:
        found.append(row.ledger == which.ledger.value)
    if which.success is not None:
        found += [row.success == which.success, row.outcome.in_(("completed", "truncated"))]
    if which.reward_min is not None:
        found.append(row.reward >= which.reward_min)
    if which.reward_max is not None:
        found.append(row.reward <= which.reward_max)
    if which.group:
        found.append(row.group_id == which.group)
    if which.task:
        found.append(row.task.icontains(which.task, autoescape=True))
    for word in which.text.split():
        anywhere = (row.task, row.id, row.reason, row.sandbox_id)
        found.append(or_(*(column.icontains(word, autoescape=True) for column in anywhere)))
    return found


def _sum_conditions(which: EpisodeFilter) -> list[ColumnElement[bool]]:
    """The same on the ledger's sums, which know nothing of tasks and successes."""
    found: list[ColumnElement[bool]] = []
    if which.phase:
        found.append(LedgerRow.phase == which.phase)
    if which.outcome:
        found.append(LedgerRow.outcome == which.outcome)
    if which.ledger:
        found.append(LedgerRow.account == which.ledger.value)
    return found


def _age(episode: EpisodeRecord) -> tuple[bool, datetime]:
    """What tells the newer of two reports of an episode: one that has ended from one in flight, then the end's time."""
    ended_at = episode.ended_at if episode.ended_at.tzinfo else episode.ended_at.replace(tzinfo=UTC)
    return episode.ledger is not LedgerState.IN_FLIGHT, ended_at


def unknown_run(run_id: str) -> NotFound:
    return NotFound(f"no run {run_id!r}", hint="GET /v1/runs lists them.")


def _book(sums: list[int], sign: int, tokens: int, sandbox_s: float) -> None:
    sums[0] += sign
    sums[1] += sign * tokens
    sums[2] += sign * round(sandbox_s * 1e6)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Without NaN and infinities, which JSON does not have: a number that is none is not reported."""
    return {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}


def _text(value: str) -> str:
    """PostgreSQL's text has no NUL character; what a policy writes may."""
    return value.replace("\x00", "\ufffd")


def _run_view(row: dict[str, Any]) -> RunView:
    return RunView(**{k: v for k, v in row.items() if k != "resumed_from"})


def _episode_values(run_id: str, episode: EpisodeRecord) -> dict[str, Any]:
    values = episode.model_dump(exclude={"turns"})
    values |= {
        "run_id": run_id,
        "ledger": episode.ledger.value,
        "reason": _text(episode.reason),
        "task": _text(episode.task),
    }
    values["turn_count"] = episode.turn_count or len(episode.turns)
    return values


def _episode(row: dict[str, Any]) -> EpisodeRecord:
    return EpisodeRecord(**{k: v for k, v in row.items() if k != "run_id"})

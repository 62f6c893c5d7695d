"""The ledger's law, dispatched = Σ accounts, whatever happens to the reports on their way."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from rock.domain.errors import StorageError
from rock.domain.outcome import LedgerState
from rock.store import database as database_module
from rock.store.runs import RunStore
from rock.store.tables import EpisodeRow, LedgerRow
from rock.wire.models import EpisodeRecord, RunView

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def episode(number: int, version: int, ledger: LedgerState, tokens: int) -> EpisodeRecord:
    return EpisodeRecord(
        id=f"ep-{number}",
        env="toy",
        task="t",
        seed=number,
        ledger=ledger,
        outcome="completed",
        generated_tokens=tokens,
        started_at=T0,
        ended_at=T0 + timedelta(seconds=version),
    )


async def a_run(store: RunStore) -> str:
    run_id = f"run-{secrets.token_hex(8)}"  # not random: Hypothesis seeds that
    await store.create(
        RunView(id=run_id, name="n", status="training", recipe={}, total_steps=1, created_at=T0, updated_at=T0)
    )
    return run_id


def newest(reports: list[EpisodeRecord]) -> dict[str, EpisodeRecord]:
    found: dict[str, EpisodeRecord] = {}
    for one in sorted(reports, key=lambda e: (e.ledger is not LedgerState.IN_FLIGHT, e.ended_at)):
        found[one.id] = one
    return found


@st.composite
def on_their_way(draw: st.DrawFn) -> list[list[EpisodeRecord]]:
    """Reports of some episodes, each in several versions: doubled, in any order, in batches."""
    count = draw(st.integers(1, 5))
    sent = [
        episode(number, version, draw(st.sampled_from(LedgerState)), draw(st.integers(0, 99)))
        for number in range(count)
        for version in range(draw(st.integers(1, 3)))
    ]
    arrived = draw(st.permutations(sent + draw(st.lists(st.sampled_from(sent), max_size=6))))
    cuts = sorted(draw(st.lists(st.integers(0, len(arrived)), max_size=4)))
    return [arrived[a:b] for a, b in zip([0, *cuts], [*cuts, len(arrived)], strict=True)]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=on_their_way(), together=st.booleans())
def test_doubled_reordered_and_concurrent_reports_leave_one_truth(
    opened: Callable[..., Any], batches: list[list[EpisodeRecord]], together: bool
) -> None:
    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            run_id = await a_run(store)
            if together:
                await asyncio.gather(*(store.add_episodes(run_id, batch, T0) for batch in batches))
            else:
                for batch in batches:
                    await store.add_episodes(run_id, batch, T0)
            truth = newest([one for batch in batches for one in batch])
            ledger = await store.ledger(run_id)
            assert ledger.conserved
            assert ledger.dispatched == len(truth)
            for state in LedgerState:
                mine = [e for e in truth.values() if e.ledger is state]
                assert ledger.accounts[state] == len(mine)
                assert ledger.tokens[state] == sum(e.generated_tokens for e in mine)

    asyncio.run(main())


def test_two_platforms_on_one_database_do_not_lose_each_others_bookings(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as one, opened() as other:
            run_id = await a_run(RunStore(one))
            batches = [[episode(n, 1, LedgerState.TRAINED, 1) for n in range(k, k + 10)] for k in range(0, 50, 5)]

            async def book(store: RunStore, batch: list[EpisodeRecord]) -> None:
                async with asyncio.timeout(60):
                    while True:
                        try:
                            return await store.add_episodes(run_id, batch, T0)
                        except StorageError:  # the other one was at it: as a client would, again
                            await asyncio.sleep(0.02)

            stores = [RunStore(one), RunStore(other)]
            await asyncio.gather(*(book(stores[n % 2], batch) for n, batch in enumerate(batches)))
            ledger = await RunStore(one).ledger(run_id)
            assert (ledger.dispatched, ledger.accounts[LedgerState.TRAINED], ledger.conserved) == (55, 55, True)

    asyncio.run(main())


def test_a_report_that_fails_half_way_books_nothing(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            run_id = await a_run(store)
            good = [episode(n, 1, LedgerState.TRAINED, 1) for n in range(3)]
            await store.add_episodes(run_id, good, T0)

            async def refuse(*_: Any, **__: Any) -> None:
                raise OSError("the disk went away")

            with monkeypatch.context() as patch:
                patch.setattr("rock.store.runs.upsert", refuse)
                with pytest.raises(StorageError):
                    await store.add_episodes(run_id, [episode(n, 2, LedgerState.VOID, 1) for n in range(9)], T0)
            monkeypatch.setattr(database_module, "HOLD_OFF_S", 0)
            ledger = await store.ledger(run_id)
            assert (ledger.dispatched, ledger.accounts[LedgerState.TRAINED], ledger.conserved) == (3, 3, True)

    asyncio.run(main())


def test_a_ledger_that_does_not_add_up_is_seen(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            run_id = await a_run(store)
            assert (await store.ledger(run_id)).conserved
            await store.add_episodes(run_id, [episode(n, 1, LedgerState.TRAINED, 1) for n in range(3)], T0)
            async with database.write() as connection:
                await connection.execute(delete(EpisodeRow).where(EpisodeRow.id == "ep-1"))
            broken = await store.ledger(run_id)
            assert (broken.dispatched, sum(broken.accounts.values()), broken.conserved) == (2, 3, False)
            async with database.write() as connection:
                await connection.execute(update(LedgerRow).values(episodes=2))
            assert (await store.ledger(run_id)).conserved

    asyncio.run(main())

"""Runs, metrics, episodes and the ledger's sums, on both databases."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rock.domain.errors import NotFound
from rock.domain.outcome import LedgerState
from rock.store.runs import RunStore
from rock.wire.models import EpisodeFilter, EpisodeRecord, MetricPoint, RunUpdate, RunView, TurnRecord

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def run_view(run_id: str = "run-1", **changes: Any) -> RunView:
    base: dict[str, Any] = {
        "id": run_id,
        "name": "n",
        "status": "starting",
        "recipe": {"α": [1, {"b": None}]},
        "total_steps": 10,
        "created_at": T0,
        "updated_at": T0,
    }
    return RunView(**{**base, **changes})


def episode(number: int, **changes: Any) -> EpisodeRecord:
    base: dict[str, Any] = {
        "id": f"ep-{number}",
        "env": "toy",
        "task": "t",
        "seed": number,
        "ledger": LedgerState.TRAINED,
        "outcome": "completed",
        "reward": 1.0,
        "success": True,
        "generated_tokens": 10,
        "sandbox_s": 0.1,
        "started_at": T0,
        "ended_at": T0 + timedelta(seconds=number),
        "turns": (TurnRecord(observation="o", response="r\x00é", action="a"),),
    }
    return EpisodeRecord(**{**base, **changes})


def test_a_run_is_kept_and_updated(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            await store.create(run_view())
            await store.create(run_view("run-2", created_at=T0 + timedelta(hours=1)))
            await store.update("run-1", RunUpdate(status="training", summary={"a": 1, "bad": math.nan}), T0)
            await store.update("run-1", RunUpdate(detail="d", total_steps=80, summary={"b": [2]}), T0)
        async with opened() as database:  # it survives
            store = RunStore(database)
            run = await store.run("run-1")
            assert (run.status, run.detail, run.total_steps) == ("training", "d", 80)
            assert run.summary == {"a": 1, "b": [2]}
            assert run.recipe == {"α": [1, {"b": None}]}
            assert run.created_at == T0
            assert [r.id for r in await store.runs()] == ["run-2", "run-1"]
            for call in (
                store.run("run-x"),
                store.update("run-x", RunUpdate(), T0),
                store.add_episodes("x", [episode(1)], T0),
            ):
                with pytest.raises(NotFound):
                    await call

    asyncio.run(main())


def test_metrics_of_a_step_are_merged_and_the_run_knows_its_step(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            await store.create(run_view())
            points = [MetricPoint(step=n, at=T0, values={"loss": float(n)}) for n in range(5)]
            await store.add_metrics("run-1", points, T0)
            await store.add_metrics("run-1", points, T0)
            again = [MetricPoint(step=2, at=T0, values={"loss": 9.0, "x": math.inf, "y": 1.0})]
            await store.add_metrics("run-1", again, T0 + timedelta(seconds=5))
            assert [p.values for p in await store.metrics("run-1", 2)] == [
                {"loss": 9.0, "y": 1.0},
                {"loss": 3.0},
                {"loss": 4.0},
            ]
            run = await store.run("run-1")
            assert (run.step, run.updated_at) == (4, T0 + timedelta(seconds=5))
            with pytest.raises(NotFound):
                await store.add_metrics("run-x", points, T0)

    asyncio.run(main())


def test_an_episode_comes_back_as_it_was(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            await store.create(run_view())
            void = episode(2, ledger=LedgerState.VOID, outcome="void", reward=None, success=None, reason="lost\x00")
            await store.add_episodes("run-1", [episode(1), void], T0)
            assert await store.episode("run-1", "ep-1") == episode(1, turn_count=1)
            page = await store.episodes("run-1")
            assert [(e.id, e.turns, e.turn_count) for e in page.episodes] == [("ep-2", (), 1), ("ep-1", (), 1)]
            assert page.episodes[0].reward is None
            with pytest.raises(NotFound):
                await store.episode("run-1", "ep-9")

    asyncio.run(main())


def test_pages_are_filtered_ordered_and_counted(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            await store.create(run_view())
            await store.create(run_view("run-2"))
            many = [
                episode(
                    n,
                    phase="eval" if n % 2 else "train",
                    outcome="void" if n % 3 == 0 else "completed",
                    ledger=LedgerState.VOID if n % 3 == 0 else LedgerState.TRAINED,
                )
                for n in range(1300)
            ]
            await store.add_episodes("run-1", many, T0)
            await store.add_episodes("run-2", many[:7], T0 + timedelta(seconds=9))
            assert [(r.id, r.updated_at) for r in await store.runs()] == [
                ("run-1", T0),
                ("run-2", T0 + timedelta(seconds=9)),
            ]
            assert (await store.episodes("run-2")).total == 7
            for chosen in ({}, {"phase": "eval"}, {"outcome": "void"}, {"phase": "eval", "ledger": "void"}):
                page = await store.episodes("run-1", EpisodeFilter(**chosen), limit=1000, offset=10)
                expected = [
                    e.id
                    for e in reversed(many)
                    if all(str(getattr(e, name)) == value for name, value in chosen.items())
                ]
                assert page.total == len(expected)
                assert [e.id for e in page.episodes] == expected[10:1010]
            assert (await store.episodes("run-1", offset=5000)).episodes == ()

    asyncio.run(main())


def test_episodes_are_found_by_success_reward_group_task_and_words(opened: Callable[..., Any]) -> None:
    episodes = [
        episode(1, task="heat_50%_Mug", success=True, sandbox_id="sb-aa"),
        episode(
            2,
            task="heat_500_mug",
            success=False,
            outcome="truncated",
            reason="Step limit",
            sandbox_id="sb-bb",
            reward=-0.5,
            group_id="g-1",
        ),
        episode(3, task="cool_pan", success=False, sandbox_id="sb-cc", phase="eval", reward=0.25, group_id="g-1"),
        episode(
            4,
            task="cool_pan",
            success=False,
            outcome="void",
            reason="sandbox lost",
            sandbox_id="sb-dd",
            reward=None,
            group_id="g-10",
        ),
        episode(5, task="cool_pan", success=None, outcome="cancelled", reward=None),
    ]
    expected: list[tuple[dict[str, Any], list[int]]] = [
        ({"success": True}, [1]),
        ({"success": False}, [3, 2]),
        ({"success": False, "phase": "eval"}, [3]),
        ({"reward_min": -0.5}, [3, 2, 1]),
        ({"reward_min": 0.25, "reward_max": 0.9}, [3]),
        ({"reward_max": 0.0}, [2]),
        ({"group": "g-1"}, [3, 2]),
        ({"group": "g-1", "reward_min": 0.0}, [3]),
        ({"task": "MUG"}, [2, 1]),
        ({"task": "50%_"}, [1]),
        ({"task": "sb-aa"}, []),
        ({"text": "sb-bb"}, [2]),
        ({"text": "HEAT limit"}, [2]),
        ({"text": "lost"}, [4]),
        ({"text": "ep-5"}, [5]),
        ({"text": " "}, [5, 4, 3, 2, 1]),
        ({"text": "pan", "outcome": "completed", "success": False}, [3]),
    ]

    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            for run_id in ("run-1", "run-2"):
                await store.create(run_view(run_id))
                await store.add_episodes(run_id, episodes, T0)
            for chosen, numbers in expected:
                page = await store.episodes("run-1", EpisodeFilter(**chosen))
                assert ([e.seed for e in page.episodes], page.total) == (numbers, len(numbers)), chosen
                second = await store.episodes("run-1", EpisodeFilter(**chosen), limit=1, offset=1)
                assert ([e.seed for e in second.episodes], second.total) == (numbers[1:2], len(numbers)), chosen

    asyncio.run(main())


reports = st.lists(
    st.lists(
        st.builds(
            lambda n, ledger, phase, tokens, micros: episode(
                n, ledger=ledger, phase=phase, generated_tokens=tokens, sandbox_s=micros / 1e6, turns=()
            ),
            st.integers(0, 6),
            st.sampled_from(LedgerState),
            st.sampled_from(["train", "eval"]),
            st.integers(0, 1000),
            st.integers(0, 10**9),
        ),
        max_size=8,
    ),
    max_size=6,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reports=reports, number=st.integers(0, 10**12))
def test_the_sums_equal_a_scan_whatever_is_reported_again(
    opened: Callable[..., Any], reports: list[list[EpisodeRecord]], number: int
) -> None:
    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            run_id = f"run-{number}-{datetime.now(UTC).timestamp()}"
            await store.create(run_view(run_id))
            last: dict[str, EpisodeRecord] = {}
            for report in reports:
                await store.add_episodes(run_id, report, T0)
                for e in report:
                    if e.id not in last or e.ledger is not LedgerState.IN_FLIGHT or last[e.id].ledger is e.ledger:
                        last[e.id] = e
            ledger = await store.ledger(run_id)
            assert ledger.conserved
            assert ledger.dispatched == len(last)
            for state in LedgerState:
                mine = [e for e in last.values() if e.ledger is state]
                assert ledger.accounts[state] == len(mine)
                assert ledger.tokens[state] == sum(e.generated_tokens for e in mine)
                assert ledger.sandbox_s[state] == pytest.approx(sum(e.sandbox_s for e in mine), abs=1e-9)
            assert (await store.episodes(run_id)).total == len(last)

    asyncio.run(main())


def test_latencies_count_an_episode_once_when_it_has_ended(opened: Callable[..., Any]) -> None:
    turns = tuple(
        TurnRecord(observation="o", response="r", action="a", generate_s=0.5, env_s=0.01 * n) for n in range(1, 5)
    )

    async def main() -> None:
        async with opened() as database:
            store = RunStore(database)
            await store.create(run_view())
            in_flight = episode(1, ledger=LedgerState.IN_FLIGHT, turns=turns)
            ended = episode(1, reset_s=2.0, open_s=0.1, turns=turns)
            for report in ([in_flight], [ended], [ended], [ended, episode(1, reset_s=9.0, turns=turns)]):
                await store.add_episodes("run-1", report, T0)
            await store.add_episodes("run-1", [episode(2, reset_s=4.0)], T0)
            found = {(v.env, v.what): v for v in await store.latencies("run-1")}
            assert {what: v.count for (_, what), v in found.items()} == {
                "open": 1,
                "reset": 2,
                "generate": 4,
                "step": 4,
            }
            assert found["toy", "reset"].p50_s == pytest.approx(2.0, rel=0.05)
            assert found["toy", "reset"].p99_s == pytest.approx(4.0, rel=0.05)
            assert found["toy", "step"].p50_s == pytest.approx(0.02, rel=0.05)

    asyncio.run(main())

"""`rock top`: bars and curves say what the numbers say, and a picture of a platform has all its parts."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rock.cli.top import BLOCKS, Moment, bar, picture, spark
from rock.sdk import EventView, Health, LedgerState, LedgerView, MetricPoint, NodeView, RunView, SandboxState

NOW = datetime.now(UTC)


def plain(markup: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(markup)
    return console.file.getvalue().strip()  # type: ignore[attr-defined,no-any-return]


@given(st.floats(-3, 3), st.integers(1, 30))
def test_a_bar_is_as_wide_as_it_was_asked_to_be(share: float, width: int) -> None:
    drawn = plain(bar(share, width))
    assert len(drawn) == width
    assert drawn.count("█") == round(min(1, max(0, share)) * width)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_a_curve_has_a_point_a_value_and_keeps_their_order(values: list[float]) -> None:
    drawn = spark(values)
    heights = [BLOCKS.index(block) for block in drawn]
    assert len(drawn) == len(values)
    ranked = sorted(zip(values, heights, strict=True))
    assert [h for _, h in ranked] == sorted(heights)


def moment() -> Moment:
    run = RunView(
        id="run-0123456789", name="a [bold]night", status="training", recipe={}, total_steps=40, step=10,
        created_at=NOW - timedelta(minutes=5), updated_at=NOW,
    )  # fmt: skip
    node = NodeView(
        name="local", runtime="docker", healthy=True, capacity=32, cpu_percent=50, memory_used_bytes=1,
        memory_total_bytes=4, sandboxes={SandboxState.LEASED: 3, SandboxState.READY: 2, SandboxState.GONE: 9},
    )  # fmt: skip
    accounts = {LedgerState.TRAINED: 90, LedgerState.VOID: 2, LedgerState.IN_FLIGHT: 8}
    ledger = LedgerView(run_id=run.id, dispatched=100, accounts=accounts, tokens={}, sandbox_s={}, conserved=True)
    points = [MetricPoint(step=s, at=NOW, values={"rollout/success": s / 10}) for s in range(1, 6)]
    event = EventView(id=1, at=NOW, kind="sandbox.failed", subject="sb-1", detail="killed", run_id=run.id)
    health = Health(status="ok", version="0.1", runtime="docker", uptime_s=60, pid=1, instance="i", database="sqlite")
    return Moment(health, [node], [run], {run.id: ledger}, {run.id: points}, [event])


def test_a_picture_has_nodes_runs_and_events() -> None:
    console = Console(file=io.StringIO(), width=220)
    console.print(picture(moment()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    curve = f"{spark([n / 10 for n in range(1, 6)])} 0.5"
    for words in ("local", "5 of 32", "a [bold]night", "10/40", curve, "92", "sandbox.failed", "sb-1"):
        assert words in text, words

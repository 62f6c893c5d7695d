"""`rock inspect` shows why a sandbox failed, whatever is known of it."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from rich.console import Console

from rock.cli._evidence import print_view
from rock.domain.sandbox import MEANING, SandboxState
from rock.wire.models import Evidence, Pressure, ProbeResult, SandboxSpec, SandboxView

NOW = datetime(2025, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def shown(**changes: object) -> str:
    view = SandboxView(
        id="sb-1",
        state=SandboxState.FAILED,
        node="n1",
        runtime="fake",
        spec=SandboxSpec(image="any:1"),
        created_at=NOW,
        changed_at=NOW,
        meaning=MEANING[SandboxState.FAILED],
    ).model_copy(update=changes)
    out = Console(file=io.StringIO(), width=200, color_system=None)
    print_view(out, view)
    return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_all_the_evidence_is_shown() -> None:
    text = shown(
        evidence=Evidence(
            cause="oom",
            detail="it used more than its 512 MiB of memory",
            exit_code=137,
            oom_killed=True,
            last_output=("first [red]line", "last line"),
            probes=(ProbeResult(at=NOW, ok=True, latency_s=0.0012), ProbeResult(at=NOW, ok=False, latency_s=0.4)),
            pressure=Pressure(cpu=0.93, memory=0.5, load_per_cpu=3.25, disk=0.1),
            detected_after_s=0.31,
        )
    )
    for part in (
        MEANING[SandboxState.FAILED],
        "it used more than its 512 MiB",
        "137",
        "the kernel killed something in it",
        "0.31 s after its last sign of life",
        "cpu 93%, load 3.2 per cpu, memory 50%, disk 10%",
        "03:04:05.678",
        "1.2 ms",
        "400.0 ms",
        "first [red]line",
        "last line",
    ):
        assert part in text, part


def test_a_sparse_failure_is_told_too() -> None:
    text = shown(evidence=Evidence(cause="removed"))
    assert "removed" in text
    assert "it said nothing" in text
    assert "exit code" not in text


def test_a_healthy_one_shows_what_it_went_through() -> None:
    text = shown(state=SandboxState.LEASED, oom_kills=1, env_deaths=2, slow="a step takes it 1 s")
    assert "1 time: a process in it was killed" in text
    assert "2 times: its guest dealt with it" in text
    assert "a step takes it 1 s" in text
    assert "why it failed" not in text

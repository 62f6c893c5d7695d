"""Standings, quarantine and healing as the page tells them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dashboard import markup
from dashboard.frames import failures, healing
from dashboard.palette import Tone
from dashboard.sentences import fleet_sentence, healing_sentence
from rock.domain.nodes import NodeStanding
from rock.sdk import EventView, NodeView, QuarantineView, SandboxSpec, SandboxState, SandboxView
from rock.wire.models import Evidence, Pressure, ProbeResult

NOW = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)


def event(kind: str, minutes_ago: float) -> EventView:
    return EventView(at=NOW - timedelta(minutes=minutes_ago), kind=kind, subject="ls-1")


def node(standing: NodeStanding, detail: str = "") -> NodeView:
    return NodeView(
        name="n1", runtime="docker", healthy=True, capacity=8, standing=standing, standing_detail=detail, started_at=NOW
    )


def test_only_losses_of_the_window_are_counted_and_each_by_how_it_ended() -> None:
    events = [event("lease.recovered", 5), event("lease.recovered", 70), event("lease.lost", 1), event("node.up", 1)]
    counts = healing(events, NOW - timedelta(hours=1))
    assert counts == {"resumed": 1, "diverged": 0, "lost": 1}
    said = healing_sentence(counts, "the last hour")
    assert said.startswith("2 losses in the last hour")
    assert "diverged" not in said
    assert healing_sentence(healing([], NOW), "the last hour") == "no leased sandbox was lost in the last hour"


@pytest.mark.parametrize("standing", list(NodeStanding))
def test_every_standing_of_a_node_has_a_word_and_its_reason(standing: NodeStanding) -> None:
    card = markup.node_card(node(standing, "silent for <9> s"), "2 h")
    assert standing.value in card
    assert ("silent for &lt;9&gt; s" in card) == (standing is not NodeStanding.UP)


def test_a_dead_node_alarms_and_a_cordoned_one_does_not() -> None:
    assert fleet_sentence(None, [node(NodeStanding.DEAD)], [], 0, "the last hour").tone is Tone.BAD
    resting = fleet_sentence(None, [node(NodeStanding.CORDONED)], [], 0, "the last hour")
    assert resting.tone is Tone.GOOD
    assert "n1 taken out by an operator" in resting.text


def test_quarantine_tells_the_command_that_clears_it() -> None:
    held = QuarantineView(
        kind="image", subject="abc123", name="evil<image>", reason="5 failed starts", failures=5, since=NOW
    )
    table = markup.quarantine_table([held], lambda at: at.isoformat())
    assert "rock quarantine clear abc123" in table
    assert "evil&lt;image&gt;" in table


def test_a_failure_shows_what_the_machine_and_the_probes_were_like() -> None:
    probes = (ProbeResult(at=NOW, ok=True, latency_s=0.002), ProbeResult(at=NOW, ok=False, latency_s=1.0))
    evidence = Evidence(
        cause="frozen", probes=probes, detected_after_s=1.4, pressure=Pressure(cpu=0.93, memory=0.4, load_per_cpu=2.5)
    )
    lost = SandboxView(
        id="sb-1", state=SandboxState.FAILED, node="n1", runtime="docker", spec=SandboxSpec(image="i"), created_at=NOW,
        changed_at=NOW, evidence=evidence,
    )  # fmt: skip
    facts = dict(failures([lost], [])[0].evidence)
    assert "CPU 93%" in facts["the machine then"]
    assert facts["last probes"] == "2 ms, none in 1.0 s"

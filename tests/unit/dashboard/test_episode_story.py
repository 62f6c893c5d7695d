"""What is said of one episode beside its record: losses by turn, its group, its advantages, how to play it again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dashboard import episode_story, markup, snapshots
from dashboard.snapshots import Search
from rock.sdk import EpisodePage, EpisodeRecord, EpisodeRhythm, EventView, LedgerState, RhythmCoupling, TurnRecord

NOW = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


def an_episode(number: int = 1, **changes: Any) -> EpisodeRecord:
    turns = tuple(TurnRecord(observation="o", response="r", action=a, tokens=2) for a in ("go to desk 1", "it's"))
    values = {
        "id": f"ep-{number}", "env": "alfworld", "task": "a task", "seed": 7, "step": 4, "ledger": LedgerState.TRAINED,
        "outcome": "completed", "reward": 1.0, "success": True, "sandbox_id": "sb-a", "recoveries": 2,
        "started_at": NOW, "ended_at": NOW + timedelta(seconds=20), "turns": turns, "group_id": "g-1",
    }  # fmt: skip
    return EpisodeRecord(**{**values, **changes})


def moved(number: int, old: str, new: str, way: str, after_s: float = 5) -> EventView:
    detail = f"sandbox {old} → {new}: resumed in 0.500 s (0.400 s to bind, 0.100 s to {way}); oom"
    at = NOW + timedelta(seconds=after_s)
    return EventView(id=number, at=at, kind="lease.recovered", subject="ls-1", detail=detail)


def test_a_loss_is_marked_in_the_turn_that_was_under_way() -> None:
    events = [
        moved(3, "sb-b", "sb-c", "restore the snapshot of step 4 and replay 2 steps", 9),
        moved(1, "sb-a", "sb-b", "replay 3 steps"),
        moved(2, "sb-x", "sb-y", "replay 1 steps"),
        moved(4, "sb-c", "sb-d", "replay 1 steps", 60),
    ]
    found = episode_story.recoveries(an_episode(), events)
    assert [r.turn for r in found] == [4, 7], "others' losses, and those after its end, are passed over"
    assert "sb-a → sb-b" in found[0].says


def test_a_marked_turn_and_the_sentence_say_so() -> None:
    turn = an_episode().turns[0]
    assert "recovered" not in markup.turn_card(1, turn)
    card = markup.turn_card(1, turn, advantage=-0.25, recovered=["<b>"])
    assert "mean advantage -0.250" in card
    assert "&lt;b&gt;" in card
    assert "lost 2 times in mid-episode" in markup.episode_banner(an_episode())


def test_the_group_says_how_each_stands_against_its_mean() -> None:
    group = [an_episode(1), an_episode(2, reward=0.0, success=False), an_episode(3, reward=None, outcome="void")]
    frame = episode_story.group_frame(group[1], group)
    assert list(frame["episode"]) == ["ep-1", "ep-2", "ep-3"]
    assert list(frame["against the group"][:2]) == [0.5, -0.5]
    assert frame["against the group"].isna().iloc[2], "what has no reward has no place in the mean"
    assert list(frame[""]) == ["", "this one", ""]


def rhythm(*advantage: float) -> EpisodeRhythm:
    own = tuple(range(len(advantage)))
    series = (1.0,) * len(own)
    flags = (False,) * len(own)
    coupling = RhythmCoupling(
        tokens=4, entropy=1.0, entropy_tokens=4, peaks=0, peak_entropy=0.0, anchors=0, followed=0, expected=0.0
    )
    return EpisodeRhythm(
        episode_id="ep-1", step=4, task="t", success=True, strategy="coupled", coupling=coupling,
        tokens=("x",) * len(own), own=own, waad=series, fai=series, change=series, gamma=series, advantage=advantage,
        entropy=series, anchor=flags, preplan=flags,
    )  # fmt: skip


def test_a_turns_advantage_is_the_mean_of_its_tokens() -> None:
    assert episode_story.turn_advantages(an_episode(), rhythm(1.0, 2.0, -1.0, 0.0)) == [1.5, -0.5]


@pytest.mark.parametrize("recorded", [None, rhythm(1.0, 2.0)])
def test_advantages_that_do_not_fit_the_turns_are_not_guessed(recorded: EpisodeRhythm | None) -> None:
    assert episode_story.turn_advantages(an_episode(), recorded) == [None, None]


def test_the_commands_are_ready_for_a_shell() -> None:
    check, replay = episode_story.commands("run-1", an_episode()).splitlines()
    assert check == (
        "rock env check alfworld --task 'a task' --seed 7 --steps 2 '--action=go to desk 1' '--action=it'\"'\"'s'"
    )
    assert replay == "rock run replay run-1 --to 4"
    assert episode_story.commands("run-1", an_episode(turns=(), ledger=LedgerState.VOID)) == ""


def test_a_cause_asks_for_void_episodes_whose_reason_begins_with_it() -> None:
    asked: dict[str, Any] = {}

    class Platform:
        async def episodes(self, run_id: str, **wanted: Any) -> EpisodePage:
            asked.update(wanted, run_id=run_id)
            return EpisodePage(total=0, episodes=())

    search = Search("run-1", cause="sandbox_lost", reward_min=0.5, text="mug")
    asyncio.run(snapshots.episodes(Platform(), search))  # type: ignore[arg-type]
    assert (asked["outcome"], asked["text"], asked["reward_min"]) == ("void", "mug sandbox_lost", 0.5)
    assert asked["reward_max"] is None

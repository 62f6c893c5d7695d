"""The rhythm of an episode as HTML: escaped, as strong as its rank, with its numbers."""

from __future__ import annotations

import re

from dashboard import rhythm_markup, text
from rock.sdk import EpisodeRhythm, RhythmCoupling, RhythmView


def a_record() -> EpisodeRhythm:
    return EpisodeRhythm(
        episode_id="ep-1", step=3, task="t", success=False, tokens=("<i>said</i>", "<script>", " b"), own=(1, 2),
        waad=(4.0, 1.0), fai=(0.0, 0.2), change=(3.0, 0.0), gamma=(1.2, 1.3), advantage=(), entropy=(0.5, 0.4),
        anchor=(False, True), preplan=(True, False),
    )  # fmt: skip


def test_text_of_policy_and_environment_is_never_markup() -> None:
    drawn = rhythm_markup.tokens(a_record(), "waad")
    assert "<script>" not in drawn
    assert "<i>" not in drawn
    assert "&lt;script&gt;" in drawn


def test_the_ground_is_as_strong_as_the_rank_and_marks_stand_on_their_tokens() -> None:
    drawn = rhythm_markup.tokens(a_record(), "waad")
    assert re.findall(r'class="([^"]+)" style="--s:(\d+)%"', drawn) == [
        ("rk-own rk-waad rk-preplan", "60"),
        ("rk-own rk-waad rk-anchor", "0"),
    ]
    assert re.findall(r"--s:(\d+)%", rhythm_markup.tokens(a_record(), "fai")) == ["0", "60"]


def test_an_advantage_that_is_not_known_is_not_shown() -> None:
    assert "advantage" not in rhythm_markup.numbers(a_record(), 0)
    known = a_record().model_copy(update={"advantage": (-0.5, 0.25)})
    assert "advantage +0.250 · anchor" in rhythm_markup.numbers(known, 1)


def test_statistics_are_those_of_all_episodes_together() -> None:
    one = RhythmCoupling(tokens=10, entropy=5, entropy_tokens=10, peaks=1, peak_entropy=1, anchors=2, followed=1)
    other = RhythmCoupling(tokens=10, entropy=5, entropy_tokens=10, peaks=1, anchors=2, followed=2, expected=1)
    tiles = rhythm_markup.coupling_tiles(rhythm_markup.added([one, other]), "two")
    assert [value for _, value, _, _ in tiles] == ["+0%", "+200%", "3 of 4", "20"]
    unknown = rhythm_markup.coupling_tiles(RhythmCoupling(), "none")
    assert [value for _, value, _, _ in unknown] == [text.NOTHING, text.NOTHING, text.NOTHING, "0"]


def test_a_label_says_how_the_episode_ended() -> None:
    assert rhythm_markup.label(a_record().view()) == "step 3 · lost · t · ep-1"
    assert "result unknown" in rhythm_markup.label(RhythmView(episode_id="e", step=1))

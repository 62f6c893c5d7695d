"""Who is dead, who is only silent, and who says so too early: properties of the verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.detection import Attention, Look, Patience, Seen, Strain, Verdict, Watch

PATIENCE = Patience(suspect_after_s=0.4, frozen_after_s=0.8, dead_after_s=6.0, strain_factor=10.0)
SEVERITY = [Verdict.ALIVE, Verdict.SUSPECT, Verdict.DEAD]
seconds = st.floats(0, 200, allow_nan=False)
cpu = st.one_of(st.none(), st.floats(0, 10, allow_nan=False))
living = st.sampled_from([seen for seen in Seen if seen is not Seen.GONE])
looks = st.lists(st.builds(Look, living, cpu), max_size=5)


def silent(found: list[Look]) -> Watch:
    watch = Watch()
    watch.asked(0.0)
    for look in found:
        watch.looked(look)
    return watch


@given(looks, seconds, seconds, st.booleans())
def test_longer_silence_never_leads_to_a_milder_verdict(
    found: list[Look], one: float, other: float, strained: bool
) -> None:
    watch = silent(found)
    early, late = (watch.judge(at, PATIENCE, strained=strained).verdict for at in sorted((one, other)))
    assert SEVERITY.index(early) <= SEVERITY.index(late)


@given(looks, seconds, st.booleans())
def test_whoever_answered_is_alive(found: list[Look], at: float, strained: bool) -> None:
    watch = silent(found)
    watch.answered()
    assert watch.judge(at, PATIENCE, strained=strained).verdict is Verdict.ALIVE
    assert watch.silent_s(at) == 0.0


@given(looks, seconds, st.booleans())
def test_nobody_dies_of_short_silence_without_proof(found: list[Look], at: float, strained: bool) -> None:
    unproven = [look for look in found if look.seen not in {Seen.PAUSED, Seen.STOPPED}]
    verdict = silent(unproven).judge(min(at, PATIENCE.dead_after_s * 0.999), PATIENCE, strained=strained).verdict
    assert verdict is not Verdict.DEAD


@given(st.lists(st.builds(Look, st.sampled_from([Seen.RUNNABLE, Seen.UNKNOWN]), cpu), max_size=5), seconds)
def test_on_a_strained_machine_the_starved_get_ten_times_as_long(found: list[Look], at: float) -> None:
    verdict = silent(found).judge(at, PATIENCE, strained=True).verdict
    assert (verdict is Verdict.DEAD) == (at >= 60.0)


def test_who_sleeps_through_our_question_is_not_starved() -> None:
    asleep = [Look(Seen.SLEEPING, 1.0), Look(Seen.SLEEPING, 1.0)]
    assert silent(asleep).judge(6.0, PATIENCE, strained=True).verdict is Verdict.DEAD
    assert silent([*asleep, Look(Seen.RUNNABLE, 1.0)]).judge(6.0, PATIENCE, strained=True).verdict is Verdict.SUSPECT


def test_who_gets_on_with_something_gets_longer_even_on_a_quiet_machine() -> None:
    busy = [Look(Seen.RUNNABLE, 1.0), Look(Seen.RUNNABLE, 4.0)]
    assert silent(busy).judge(30.0, PATIENCE, strained=False).verdict is Verdict.SUSPECT
    judgement = silent(busy).judge(60.0, PATIENCE, strained=False)
    assert (judgement.verdict, judgement.cause) == (Verdict.DEAD, "probe")


@pytest.mark.parametrize(("seen", "cause"), [(Seen.STOPPED, "frozen"), (Seen.PAUSED, "paused")])
@pytest.mark.parametrize("strained", [True, False])
def test_a_stopped_process_is_proof_whatever_the_machine_does(seen: Seen, cause: str, strained: bool) -> None:
    watch = silent([Look(Seen.RUNNABLE), Look(seen)])
    assert watch.judge(0.3, PATIENCE, strained=strained).verdict is Verdict.ALIVE
    assert watch.judge(0.7, PATIENCE, strained=strained).verdict is Verdict.SUSPECT
    judgement = watch.judge(0.8, PATIENCE, strained=strained)
    assert (judgement.verdict, judgement.cause) == (Verdict.DEAD, cause)
    watch.looked(Look(Seen.RUNNABLE))  # somebody let it go on
    assert watch.judge(0.8, PATIENCE, strained=strained).verdict is not Verdict.DEAD


@given(looks, st.booleans())
def test_a_process_that_is_gone_is_dead_at_once_silent_or_not(found: list[Look], strained: bool) -> None:
    for watch in (Watch(), silent(found)):
        watch.looked(Look(Seen.GONE))
        assert watch.judge(0.0, PATIENCE, strained=strained).verdict is Verdict.DEAD


@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=50))
def test_attention_never_runs_ahead_and_stands_still_while_we_do(passed: list[float]) -> None:
    attention, now = Attention(0.0, tick_s=0.05), 0.0
    for step in passed:
        before = attention.now_s
        now += step
        attention.tick(now)
        assert before <= attention.now_s <= before + 0.1
        assert attention.lag_s >= 0.0
    assert attention.now_s <= now + 1e-9


def test_a_machine_that_was_suspended_finds_everybody_alive() -> None:
    attention, watch = Attention(0.0, tick_s=0.05), Watch()
    watch.asked(attention.now_s)
    watch.looked(Look(Seen.STOPPED))
    attention.tick(3600.0)  # an hour later, as the clock has it
    assert watch.judge(attention.now_s, PATIENCE, strained=False).verdict is Verdict.ALIVE


@given(seconds, seconds)
def test_strain_is_remembered_for_a_while(at: float, later: float) -> None:
    strain = Strain(hold_s=10.0)
    assert not strain.strained(at)
    strain.note(at, cpu=0.5, memory=0.5, lag_s=0.01)
    assert not strain.strained(at)
    strain.note(at, cpu=0.99)
    strain.note(at + 1.0, cpu=0.1)
    assert strain.strained(at + later) == (at + later < at + 10.0)


def test_under_strain_half_a_second_is_no_reason_for_suspicion_unless_there_is_proof() -> None:
    unproven, proven = silent([Look(Seen.RUNNABLE)]), silent([Look(Seen.STOPPED)])
    for strained, verdict in ((False, Verdict.SUSPECT), (True, Verdict.ALIVE)):
        assert unproven.judge(0.5, PATIENCE, strained=strained).verdict is verdict
        assert proven.judge(0.5, PATIENCE, strained=strained).verdict is Verdict.SUSPECT
    assert unproven.judge(2.0, PATIENCE, strained=True).verdict is Verdict.SUSPECT


def test_patience_must_make_sense() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Patience(dead_after_s=0)
    with pytest.raises(ValueError, match="factors"):
        Patience(strain_factor=0.5)

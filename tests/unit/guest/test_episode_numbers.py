"""The sequence of env requests, as a property: nothing acts twice, nothing acts out of order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.guest.episode import CACHED, JOIN, RUN, Episode, Fence
from rock.guest.errors import GuestError

REQUESTS = st.tuples(st.integers(0, 6), st.sampled_from(["a", "b"]), st.booleans())
ENDINGS = st.sampled_from(["ok", "over", "fail", "pending"])


@given(st.lists(st.tuples(REQUESTS, ENDINGS), max_size=30))
def test_whatever_arrives_each_number_acts_at_most_once_per_episode_and_in_order(
    steps: list[tuple[tuple[int, str, bool], str]],
) -> None:
    episode = Episode()
    acted: list[int] = []
    refusals: set[str] = set()
    for (seq, name, is_reset), ending in steps:
        request = ("reset" if is_reset else "step", name)
        try:
            verdict = episode.admit(seq, request, is_reset)
        except GuestError as error:
            refusals.add(error.code)
            continue
        if verdict == RUN:
            if is_reset:
                assert seq in (0, episode.last_seq) or seq == acted[-1] + 1
                acted = [seq]
            else:
                assert acted
                assert seq == acted[-1] + 1
                acted.append(seq)
            if ending == "fail":
                episode.fail(GuestError("environment-error", "told to"))
            elif ending != "pending":
                episode.settle((seq, request), over=ending == "over")
        elif verdict == CACHED:
            assert episode.answer == (seq, request)
            assert seq == acted[-1]
        else:
            assert verdict == JOIN
            assert episode.running
            assert seq == acted[-1]
    assert refusals <= {"conflict", "invalid-action", "environment-error"}


def played(*names: str) -> Episode:
    episode = Episode()
    for seq, name in enumerate(names):
        assert episode.admit(seq, name, seq == 0) == RUN
        episode.settle(name, over=False)
    return episode


def code_of(episode: Episode, seq: object, request: str, is_reset: bool = False) -> str:
    with pytest.raises(GuestError) as refused:
        episode.admit(seq, request, is_reset)  # type: ignore[arg-type]
    return refused.value.code


def test_a_repeated_request_gets_the_answer_it_had() -> None:
    episode = played("reset", "north")
    assert episode.admit(1, "north", False) == CACHED
    assert episode.answer == "north"


def test_the_same_number_for_something_else_is_a_conflict() -> None:
    assert code_of(played("reset", "north"), 1, "south") == "conflict"


def test_gaps_and_older_numbers_are_conflicts() -> None:
    assert code_of(played("reset", "north", "south"), 4, "west") == "conflict"
    assert code_of(played("reset", "north", "south"), 1, "north") == "conflict"


def test_stepping_before_a_reset_or_after_the_end_is_the_agents_mistake() -> None:
    assert code_of(Episode(), 0, "north") == "invalid-action"
    episode = played("reset")
    assert episode.admit(1, "win", False) == RUN
    episode.settle("won", over=True)
    assert code_of(episode, 2, "north") == "invalid-action"
    assert episode.admit(1, "win", False) == CACHED


def test_after_a_failure_only_a_reset_acts() -> None:
    episode = played("reset", "north")
    episode.admit(2, "south", False)
    episode.fail(GuestError("environment-error", "it broke"))
    assert code_of(episode, 2, "south") == "environment-error"
    assert code_of(episode, 3, "south") == "environment-error"
    assert episode.admit(0, "reset", True) == RUN


def test_a_failed_reset_can_be_tried_again() -> None:
    episode = Episode()
    episode.admit(0, "reset", True)
    episode.fail(GuestError("sandbox-lost", "it died"))
    assert episode.admit(0, "reset", True) == RUN


@pytest.mark.parametrize("seq", [-1, 1.0, "1", None, True])
def test_a_number_that_is_none_is_refused(seq: object) -> None:
    assert code_of(Episode(), seq, "reset", True) == "invalid-request"


@given(st.lists(st.integers(0, 5)))
def test_a_fence_never_goes_down(epochs: list[int]) -> None:
    fence, highest = Fence(), 0
    for epoch in epochs:
        if epoch < highest:
            with pytest.raises(GuestError):
                fence.bind(epoch)
        else:
            fence.bind(epoch)
            highest = epoch
        assert fence.epoch == highest
        fence.check(None)


def test_a_restored_episode_goes_on_from_any_number() -> None:
    episode = Episode()
    assert episode.admit(7, "restore", False, is_restore=True) == RUN
    episode.settle("{}", over=False)
    assert episode.admit(7, "restore", False, is_restore=True) == CACHED
    assert code_of(episode, 7, "step") == "conflict"
    assert episode.admit(8, "step", False) == RUN
    episode.settle("8", over=True)
    assert episode.admit(3, "restore", False, is_restore=True) == RUN
    episode.fail(GuestError("environment-error", "told to"))
    assert code_of(episode, 4, "step") == "environment-error"

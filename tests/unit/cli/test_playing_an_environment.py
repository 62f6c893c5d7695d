"""Comparing two episodes of the same task and seed."""

from __future__ import annotations

from rock.cli._playing import FALLBACK_ACTION, Trace, canonical, choose, first_difference


def trace(*seen: object) -> Trace:
    texts = tuple(canonical(item) for item in seen)
    return Trace("sb-0", 0, 0, (), tuple(f"a{i}" for i in range(len(texts))), texts, False)


def test_equal_traces_have_no_difference() -> None:
    assert first_difference(trace("a", {"x": 1, "y": 2}), trace("a", {"y": 2, "x": 1})) == ""


def test_the_first_difference_names_the_step_and_its_action() -> None:
    text = first_difference(trace("a", "b", "c"), trace("a", "b", "d"))
    assert text.startswith("step 2 ('a1')")
    assert first_difference(trace("a"), trace("b")).startswith("reset")


def test_an_episode_that_ends_earlier_differs() -> None:
    assert first_difference(trace("a", "b"), trace("a")) == "1 steps against 0"


def test_actions_come_from_the_person_then_from_the_environment() -> None:
    info = {"admissible_commands": ["go", "look", "take"], "other": ["no"]}
    assert choose(info, ["x", "y"], 3) == "y"
    assert {choose(info, [], index) for index in range(3)} == {"go", "look", "take"}
    assert choose({"admissible": []}, [], 0) == FALLBACK_ACTION

"""Calls of tools in sampled text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roll_core.serving.tools import Answer, Call, read_answer

OFFERED = ("bash", "view")
words = st.text(max_size=12).filter(lambda text: "<" not in text)
values = st.dictionaries(st.text(max_size=5), st.text(max_size=12) | st.integers() | st.booleans(), max_size=3)


def block(name: str, arguments: object) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


@given(before=words, calls=st.lists(st.tuples(st.sampled_from(OFFERED), values), min_size=1, max_size=3))
def test_what_is_written_as_calls_is_read_as_calls_and_the_rest_is_content(before, calls) -> None:
    answer = read_answer(before + "\n".join(block(*call) for call in calls), OFFERED)
    assert [(call.name, call.object) for call in answer.calls] == calls
    assert answer.content == before.strip()
    assert not answer.malformed


@given(st.text())
def test_text_without_a_block_stays_as_it_is(text: str) -> None:
    text = text.replace("<tool_call>", "")
    assert read_answer(text, OFFERED) == Answer(text)


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "{", "}", '"name": "bash"', ",", "</think>", "x"])))
def test_nothing_that_a_policy_may_sample_raises_or_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces)
    answer = read_answer(text, OFFERED)
    assert answer.calls or answer.content == text


@pytest.mark.parametrize(
    "said",
    [
        "<tool_call>no json</tool_call>",
        '<tool_call>["bash"]</tool_call>',
        block("rm", {}),
        block("bash", [1]),
        block("bash", "no json"),
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
    ],
)
def test_what_is_no_call_is_counted_and_stays_in_the_text(said: str) -> None:
    assert read_answer(said, OFFERED) == Answer(said, (), 1)


def test_a_call_in_a_thought_is_none_and_one_that_was_cut_after_its_json_counts() -> None:
    thought = f"<think>{block('view', {})}</think>"
    assert read_answer(thought, OFFERED) == Answer(thought)
    answer = read_answer(thought + '<tool_call>{"name": "bash", "arguments": {"command": "ls"}}', OFFERED)
    assert answer == Answer(thought, (Call("bash", '{"command": "ls"}'),))


def test_arguments_that_are_quoted_once_more_are_read() -> None:
    assert read_answer(block("bash", '{"command": "ls"}'), OFFERED).calls[0].object == {"command": "ls"}


def test_without_tools_there_are_no_calls() -> None:
    assert read_answer(block("bash", {}), ()) == Answer(block("bash", {}))

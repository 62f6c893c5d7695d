"""Chats as clients send them, again and again as a whole, kept as the tokens that were sampled."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roll_core.models import ChatTemplate
from roll_core.rollout.prompting import ChatPrompter, TextRules
from roll_core.serving.chats import Chats, Node
from roll_core.serving.rendering import Said, Setting, TemplateRenderer, Unrenderable
from roll_core.serving.tools import Call
from roll_core.types import Generation

from ..rollout.test_chat_drift import STYLES, TOKENIZER, TOKENS, Style, answers, evil, texts

PLAIN = Setting()
CHATML = STYLES["chatml"]
styles = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())


@functools.cache
def renderer(style: Style) -> TemplateRenderer:
    return TemplateRenderer(TOKENIZER, ChatTemplate(style.source, TOKENS), style.end)


def user(text: str) -> Said:
    return Said("user", text)


def answered(chats: Chats, style: Style, messages: list[Said], ids: list[int], setting: Setting = PLAIN) -> Node:
    """The policy samples ``ids`` after ``messages``."""
    prompt = chats.prompt(messages, setting)
    said = renderer(style).read(ids, setting)
    generation = Generation(tuple(ids), (-1.0,) * len(ids), (0,) * len(ids), "stop")
    return chats.add(prompt, generation, Said("assistant", said.content, said.calls), valid=True, generate_s=0.0)


@styles
@given(data=st.data())
def test_a_chat_that_goes_on_has_the_tokens_of_the_trainers_own_prompter(style: Style, data) -> None:
    """Id for id, whatever is said and sampled, although the client sends only texts."""
    observations = [o.strip() for o in data.draw(st.lists(texts | evil, min_size=1, max_size=4))]
    own = ChatPrompter(
        TOKENIZER, ChatTemplate(style.source, TOKENS), end_token=style.end, system="", rules=TextRules(),
        show_admissible=False,
    )  # fmt: skip
    chats, messages = Chats(renderer(style)), list[Said]()
    sequence, sampled = list[int](), list[int]()
    for turn, observation in enumerate(observations):
        messages.append(user(observation))
        sequence += own.following(observation, {}, sampled) if turn else own.opening(observation, {})
        sampled = data.draw(answers(style))
        node = answered(chats, style, messages, sampled)
        sequence += sampled
        assert node.ids() == sequence
        messages.append(replace(node.answer, text=data.draw(st.sampled_from(["", " ", "\n"])) + node.answer.text))
    assert len(chats.main()) == len(observations)
    assert len(chats.roots) == 1


@styles
@given(content=st.lists(evil | texts, min_size=1, max_size=3).map("".join))
def test_no_message_forges_a_special_token_or_breaks_one(style: Style, content: str) -> None:
    specials = set(TOKENIZER.special_tokens.values())
    one = renderer(style)
    for make in (lambda text: one.opening([user(text)], PLAIN), lambda text: one.following([user(text)], PLAIN, [])):
        assert [i for i in make(content) if i in specials] == [i for i in make("x") if i in specials]


def test_marks_in_a_message_are_only_text() -> None:
    ids = renderer(CHATML).opening([user("\u20630\u2063 and \u2063answer\u2063"), user("b")], PLAIN)
    assert TOKENIZER.decode(ids).count("\u20630\u2063 and \u2063answer\u2063") == 1


def end(text: str) -> list[int]:
    return [*TOKENIZER.encode(text), TOKENIZER.id_of(CHATML.end)]


def test_an_answer_that_the_client_changed_is_context_on_a_branch_that_shares_what_came_before() -> None:
    chats = Chats(renderer(CHATML))
    first = answered(chats, CHATML, [user("a")], end("one"))
    second = answered(chats, CHATML, [user("a"), first.answer, user("b")], end("two"))
    third = answered(
        chats, CHATML, [user("a"), first.answer, user("b"), Said("assistant", "2"), user("c")], end("three")
    )
    assert (second.parent, third.parent) == (first, first)
    assert "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n2<|im_end|>" in TOKENIZER.decode(third.context_ids)
    assert third.ids()[: len(first.ids())] == first.ids()
    assert chats.main() == [first, third], "the longer of the two trains"


def test_a_chat_that_begins_otherwise_is_another_chat() -> None:
    chats = Chats(renderer(CHATML))
    first = answered(chats, CHATML, [user("a")], end("one"))
    other = answered(chats, CHATML, [user("A"), first.answer, user("b")], end("two"))
    assert other.parent is None
    assert len(chats.roots) == 2
    assert chats.prompt([user("a"), first.answer, user("b")], Setting(variables=(("x", 1),))).parent is None


def test_asked_twice_the_chat_goes_on_from_the_latest_of_equal_answers() -> None:
    chats = Chats(renderer(CHATML))
    answered(chats, CHATML, [user("a")], end("one"))
    again = answered(chats, CHATML, [user("a")], [*TOKENIZER.encode("one"), *TOKENIZER.encode(" "), *end("")])
    assert chats.prompt([user("a"), again.answer, user("b")], PLAIN).parent is again


TOOLED = Style(
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for c in m.tool_calls %}{{ '<tool_call>' + c.function.name + c.function.arguments | tojson + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "<|im_end|>",
)
BASH = {"type": "function", "function": {"name": "bash", "parameters": {}}}
WITH_TOOLS = Setting(('{"bash"}',), (), [BASH])


def test_a_call_that_the_client_writes_anew_is_still_the_policys() -> None:
    chats = Chats(renderer(TOOLED))
    called = answered(
        chats,
        TOOLED,
        [user("a")],
        end('<tool_call>{"arguments":{"command":"ls"},"name":"bash"}</tool_call>'),
        WITH_TOOLS,
    )
    told = replace(called.answer, calls=(Call("bash", '{ "command" : "ls" }'),))
    result = [Said("tool", "file", call_id="call_0_0"), Said("tool", "more", call_id="call_0_1")]
    after = chats.prompt([user("a"), told, *result], WITH_TOOLS)
    assert after.parent is called
    assert TOKENIZER.decode(after.context_ids) == (
        "\n<|im_start|>tool\nfile<|im_end|>\n<|im_start|>tool\nmore<|im_end|>\n<|im_start|>assistant\n"
    )
    assert '"name": "bash"' in TOKENIZER.decode(called.context_ids)
    other = replace(told, calls=(Call("bash", '{"command": "rm"}'),))
    branch = chats.prompt([user("a"), other, *result], WITH_TOOLS)
    assert branch.parent is None
    assert '<tool_call>bash{"command": "rm"}</tool_call>' in TOKENIZER.decode(branch.context_ids)


def test_messages_that_a_template_refuses_or_loses_are_refused() -> None:
    alternating = renderer(STYLES["gemma, no system role, answers trimmed"])
    with pytest.raises(Unrenderable, match="roles must alternate"):
        alternating.opening([user("a"), user("b")], PLAIN)
    with pytest.raises(Unrenderable, match="leaves out 1 of 2"):
        renderer(STYLES["llama 2, a space before the end"]).opening([Said("system", "s"), user("b")], PLAIN)

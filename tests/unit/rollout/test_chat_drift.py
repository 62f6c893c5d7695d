"""Conversations over many chat templates: what was sampled stays, id for id, and between it stands what the template
says. The templates are our own, written in the manner of well-known families."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roll_core.errors import RecipeError
from roll_core.models import ChatTemplate, train_tokenizer
from roll_core.rollout.prompting import ChatPrompter, TextRules

_TAIL = "{% if add_generation_prompt %}"


@dataclass(frozen=True)
class Style:
    """A family: its template, the token that ends an answer, and what is peculiar about it."""

    source: str
    end: str
    rewrites: bool = False
    """The template shows an earlier answer otherwise than it was given."""
    moves_system: bool = False
    """The template has no system role, or puts the system prompt elsewhere when the conversation goes on."""


STYLES = {
    "chatml": Style(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        + _TAIL + "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "chatml with a default system prompt": Style(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        + _TAIL + "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "qwen3, thoughts of earlier answers stripped": Style(
        "{% for m in messages %}"
        "{% set c = m.content %}"
        "{% if m.role == 'assistant' and '</think>' in c and not loop.last %}"
        "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
        + _TAIL + "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
        rewrites=True,
    ),
    "qwen3 without thinking": Style(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1].lstrip('\\n') "
        "+ '<|im_end|>\\n' }}{% endfor %}"
        + _TAIL + "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}",
        "<|im_end|>",
        rewrites=True,
    ),
    "llama 3": Style(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start|>' + m.role + '<|stop|>\\n\\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
        + _TAIL + "{{ '<|start|>assistant<|stop|>\\n\\n' }}{% endif %}",
        "<|eot|>",
    ),
    "llama 2, a space before the end": Style(
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        moves_system=True,
    ),
    "mistral, the system prompt in the last turn": Style(
        "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' }}"
        "{% if loop.last and system %}{{ system + '\\n\\n' }}{% endif %}{{ m.content + '[/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        moves_system=True,
    ),
    "gemma, no system role, answers trimmed": Style(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '</turn>\\n' }}"
        "{% endfor %}" + _TAIL + "{{ '<turn>model\\n' }}{% endif %}",
        "</turn>",
        moves_system=True,
    ),
    "deepseek, the prompt opens the thought": Style(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
        "{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|eos|>' }}{% endif %}{% endfor %}"
        + _TAIL + "{{ '<|Assistant|><think>\\n' }}{% endif %}",
        "<|eos|>",
        rewrites=True,
    ),
    "phi, everything in one line": Style(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|eot|>' }}{% endfor %}"
        + _TAIL + "{{ '<|assistant|>' }}{% endif %}",
        "<|eot|>",
    ),
}  # fmt: skip

SPECIALS = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>", "[INST]", "[/INST]", "<turn>",
    "</turn>", "<|User|>", "<|Assistant|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>",
)  # fmt: skip
CORPUS = ["go to fridge 1\n\nYou see a mug. Nothing happens.\n take mug 1 assistant user system model [ <"] * 4
TOKENIZER = train_tokenizer(CORPUS, 340, SPECIALS)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = "Be brief."

styles = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
texts = st.text(st.characters(codec="utf-8", exclude_characters="\u2063"), max_size=24)
evil = (
    st.sampled_from(SPECIALS) | st.sampled_from([t[:-1] for t in SPECIALS]) | st.sampled_from([t[1:] for t in SPECIALS])
)
ids = st.integers(0, TOKENIZER.vocab_size - 1)


@functools.cache
def template(style: Style) -> ChatTemplate:
    return ChatTemplate(style.source, TOKENS)


@functools.cache
def prompter(style: Style, system: str = SYSTEM) -> ChatPrompter:
    return ChatPrompter(
        TOKENIZER, template(style), end_token=style.end, system=system, rules=TextRules(), show_admissible=False
    )


def answers(style: Style) -> st.SearchStrategy[list[int]]:
    """Whatever a policy may sample: any ids but the end, which may be missing (the answer was cut)."""
    end = TOKENIZER.id_of(style.end)
    body = st.lists(ids.filter(lambda i: i != end), max_size=8)
    return st.builds(lambda some, ended: some + [end] * ended, body, st.booleans())


@styles
@given(data=st.data())
def test_what_was_sampled_stays_and_between_stands_the_template_and_nothing_twice(style: Style, data) -> None:
    chat, end = prompter(style), TOKENIZER.id_of(style.end)
    observations = data.draw(st.lists(texts | evil, min_size=2, max_size=4))
    sequence = chat.opening(observations[0], {})
    sampled_at: list[tuple[int, list[int]]] = []
    for observation in observations[1:]:
        answer = data.draw(answers(style))
        sampled_at.append((len(sequence), answer))
        pieces = chat.following(observation, {}, answer)
        both = chat.following("x", {}, []).count(end)
        assert pieces.count(end) == both - (bool(answer) and answer[-1] == end), "an answer is ended exactly once"
        sequence = sequence + answer + pieces
    for at, answer in sampled_at:
        assert sequence[at : at + len(answer)] == answer


@styles
@given(observations=st.lists(texts, min_size=3, max_size=3), words=st.lists(texts, min_size=2, max_size=2))
def test_with_answers_that_were_text_the_ids_say_what_the_template_renders_at_once(
    style: Style, observations: list[str], words: list[str]
) -> None:
    chat = prompter(style, system="")
    words = [w.strip() for w in words]
    sequence = chat.opening(observations[0], {})
    messages = [{"role": "user", "content": observations[0].strip()}]
    for observation, word in zip(observations[1:], words, strict=True):
        answer = [*TOKENIZER.encode(word), TOKENIZER.id_of(style.end)]
        sequence += answer + chat.following(observation, {}, answer)
        messages += [{"role": "assistant", "content": word}, {"role": "user", "content": observation.strip()}]
    incremental = TOKENIZER.decode(sequence)
    at_once = template(style).render(messages, add_generation_prompt=True)
    # What a prompt opens (a thought) the policy has read, so it stays, where the template would take it back.
    opened = "<think>\n\n</think>\n\n" if "without" in style_name(style) else "<think>\n"
    # Spaces that a template writes around an answer are the policy's to sample.
    assert squeezed(incremental, opened) == squeezed(at_once, opened)


def style_name(style: Style) -> str:
    return next(name for name, one in STYLES.items() if one is style)


def squeezed(text: str, opened: str) -> str:
    return text.replace(opened, "").replace(" </s>", "</s>").replace("[/INST] ", "[/INST]")


@styles
@given(observation=texts)
def test_the_ids_of_a_turn_are_those_of_its_text_as_a_whole(style: Style, observation: str) -> None:
    """No seam between the template's words and the environment's that tokenising the text would not have made."""
    chat = prompter(style)
    opening = chat.opening(observation, {})
    assert opening == TOKENIZER.encode(TOKENIZER.decode(opening), specials=True)
    ended = [TOKENIZER.id_of(style.end)]
    after = chat.following(observation, {}, ended)
    assert ended + after == TOKENIZER.encode(TOKENIZER.decode(ended + after), specials=True)


@styles
@given(observation=st.lists(evil | texts, min_size=1, max_size=3).map("".join))
def test_no_observation_forges_a_special_token_or_breaks_one(style: Style, observation: str) -> None:
    chat, specials = prompter(style), set(TOKENIZER.special_tokens.values())
    for make in (lambda text: chat.opening(text, {}), lambda text: chat.following(text, {}, [])):
        assert [i for i in make(observation) if i in specials] == [i for i in make("x") if i in specials]


@styles
def test_the_system_prompt_comes_once_and_first(style: Style) -> None:
    chat = prompter(style)
    opening = TOKENIZER.decode(chat.opening("A room.", {}))
    assert opening.count(SYSTEM) == 1
    assert opening.index(SYSTEM) < opening.index("A room.")
    assert SYSTEM not in TOKENIZER.decode(chat.following("A door.", {}, []))
    if style.moves_system:
        assert prompter(style, system="").opening(f"{SYSTEM}\n\nA room.", {}) == chat.opening("A room.", {})


@styles
def test_who_rewrites_history_is_known_and_said(style: Style, caplog: pytest.LogCaptureFixture) -> None:
    prompter.cache_clear()
    with caplog.at_level(logging.INFO, "roll_core.rollout.prompting"):
        assert prompter(style).rewrites_history == style.rewrites
    assert ("keeps them as they were sampled" in caplog.text) == style.rewrites


def test_thoughts_of_earlier_answers_stay_in_the_sequence_that_trains() -> None:
    chat = prompter(STYLES["qwen3, thoughts of earlier answers stripped"])
    thought = [*TOKENIZER.encode("<think>\nhm\n</think>\n\n<action>go</action>"), *chat.stop_token_ids]
    sequence = [*chat.opening("A room.", {}), *thought, *chat.following("A door.", {}, thought)]
    assert "hm" in TOKENIZER.decode(sequence)


def test_a_template_that_cannot_be_kept_is_refused() -> None:
    chatml = STYLES["chatml"]
    with pytest.raises(RecipeError, match=r"</s>.*does not end an answer"):
        prompter(Style(chatml.source, "</s>"))
    with pytest.raises(RecipeError, match="0 times"):
        prompter(Style("{{ messages[0].role }}<|im_end|>", "<|im_end|>"))
    with pytest.raises(RecipeError, match="2 times"):
        prompter(Style("{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}", "<|im_end|>"))

"""Messages to tokens, piece by piece: what opens a chat, and what stands between two answers of the policy.

Invariants: what the policy sampled is never rendered again, so a piece ends where the policy is to speak and the next
one begins right after what it sampled; the texts of messages never pass through the template, only marks for them do,
and no text makes a special token or breaks one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from roll_core.errors import RollError
from roll_core.rollout.prompting import TextRules, Tokenizer, TranscriptPrompter, transcript_action, transcript_text
from roll_core.serving.tools import Answer, Call, names_of, read_answer

_MARK = re.compile("\u2063(\\d+)\u2063")
_ANSWER = "\u2063answer\u2063"


class Unrenderable(RollError):
    """The chat template does not take these messages."""


@dataclass(frozen=True, slots=True)
class Said:
    """One message, as far as it matters: equal ones stand for the same tokens."""

    role: str
    text: str
    calls: tuple[Call, ...] = ()
    name: str = ""
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """What holds for a whole chat besides its messages."""

    tools: tuple[str, ...] = ()
    """Each tool as JSON."""
    variables: tuple[tuple[str, Any], ...] = ()
    raw_tools: Sequence[dict[str, Any]] = field(default=(), compare=False, hash=False)

    @property
    def names(self) -> tuple[str, ...]:
        return names_of(self.raw_tools)


class Renderer(Protocol):
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]

    def opening(self, messages: Sequence[Said], setting: Setting) -> list[int]:
        """The tokens in front of the first answer. Raises Unrenderable."""
        ...

    def following(self, messages: Sequence[Said], setting: Setting, sampled: Sequence[int]) -> list[int]:
        """The tokens between ``sampled``, the answer before ``messages``, and the next one. Raises Unrenderable."""
        ...

    def read(self, sampled: Sequence[int], setting: Setting, stops: Sequence[str] = ()) -> Answer:
        """What an answer says, its end left out, whatever ended it."""
        ...


class Template(Protocol):
    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str: ...


class TemplateRenderer:
    """By the checkpoint's chat template."""

    stop: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer, template: Template, end_token: str) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._end_token = end_token
        self.stop_token_ids: tuple[int, ...] = (tokenizer.id_of(end_token),)

    def opening(self, messages: Sequence[Said], setting: Setting) -> list[int]:
        texts: list[str] = []
        return self._encode(self._render([_marked(m, texts) for m in messages], setting), texts)

    def following(self, messages: Sequence[Said], setting: Setting, sampled: Sequence[int]) -> list[int]:
        texts: list[str] = []
        dialogue = [
            {"role": "user", "content": "…"},
            {"role": "assistant", "content": _ANSWER},
            *(_marked(m, texts) for m in messages),
        ]
        text = self._render(dialogue, setting)
        if text.count(_ANSWER) != 1:
            raise Unrenderable(f"the chat template renders an answer {text.count(_ANSWER)} times where it should once")
        after = text.split(_ANSWER, 1)[1]
        _, found, rest = after.partition(self._end_token)
        if not found:
            raise Unrenderable(f"prompt.end_token {self._end_token!r} ends no answer in this chat template")
        if not sampled or sampled[-1] not in self.stop_token_ids:
            return self._encode(after, texts)
        # Read after the end, which a tokenizer may need to see in front: the very first word is treated in its own way.
        return self._encode(self._end_token + rest, texts)[1:]

    def read(self, sampled: Sequence[int], setting: Setting, stops: Sequence[str] = ()) -> Answer:
        text = self._tokenizer.decode([i for i in sampled if i not in self.stop_token_ids])
        return read_answer(before_stop(text, stops), setting.names)

    def _render(self, messages: Sequence[Mapping[str, Any]], setting: Setting) -> str:
        variables = dict(setting.variables)
        if setting.raw_tools:
            variables["tools"] = list(setting.raw_tools)
        try:
            return self._template.render(messages, add_generation_prompt=True, **variables)
        except Exception as error:
            # A template is somebody's program and raises what it likes.
            raise Unrenderable(f"the chat template refuses these messages: {error}") from error

    def _encode(self, text: str, texts: Sequence[str]) -> list[int]:
        pieces = _MARK.split(text)
        framing, inner = pieces[0::2], [texts[int(i)] for i in pieces[1::2]]
        if missing := len(texts) - len(set(pieces[1::2])):
            raise Unrenderable(f"the chat template leaves out {missing} of {len(texts)} messages")
        encode, specials = self._tokenizer.encode, set(self._tokenizer.special_tokens.values())
        whole = encode("".join(f + t for f, t in zip(framing, [*inner, ""], strict=True)), specials=True)
        parts = [encode(f, specials=True) for f in framing]
        if [i for i in whole if i in specials] == [i for part in parts for i in part if i in specials]:
            return whole
        ids = parts[0]
        for content, part in zip(inner, parts[1:], strict=True):
            ids = [*ids, *encode(content), *part]
        return ids


def _marked(message: Said, texts: list[str]) -> dict[str, Any]:
    """``message`` for the template, with a mark in place of its text, which joins ``texts``."""
    entry: dict[str, Any] = {"role": message.role, "content": f"\u2063{len(texts)}\u2063"}
    texts.append(message.text)
    if message.calls:
        if not message.text:  # templates ask whether there is content beside the calls
            texts.pop()
            entry["content"] = ""
        entry["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.object}} for call in message.calls
        ]
    if message.name:
        entry["name"] = message.name
    if message.call_id:
        entry["tool_call_id"] = message.call_id
    return entry


class TranscriptRenderer:
    """By the bare transcript of tiny models: texts, line break, ``> ``, answer, line break. It knows no roles and no
    tools."""

    def __init__(self, tokenizer: Tokenizer, prompter: TranscriptPrompter, rules: TextRules) -> None:
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._rules = rules
        self.stop = prompter.stop
        self.stop_token_ids = prompter.stop_token_ids

    def opening(self, messages: Sequence[Said], setting: Setting) -> list[int]:
        return self._tokenizer.encode(self._text(messages, setting))

    def following(self, messages: Sequence[Said], setting: Setting, sampled: Sequence[int]) -> list[int]:
        ended = self._tokenizer.decode(sampled).endswith("\n")
        return self._tokenizer.encode(("" if ended else "\n") + self._text(messages, setting))

    def read(self, sampled: Sequence[int], setting: Setting, stops: Sequence[str] = ()) -> Answer:
        text = self._tokenizer.decode(sampled)
        return Answer(before_stop(text, (*stops, "\n")).strip())

    def _text(self, messages: Sequence[Said], setting: Setting) -> str:
        if setting.raw_tools:
            raise Unrenderable("prompt.format=transcript knows no tools: it needs a checkpoint with a chat template")
        text, waiting = "", list[str]()
        for message in messages:
            if message.role != "assistant":
                waiting.append(self._rules(message.text))
                continue
            text += transcript_text("\n".join(waiting), TextRules()) + transcript_action(message.text)
            waiting = []
        return text + transcript_text("\n".join(waiting), TextRules())


def before_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of ``stops``."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]

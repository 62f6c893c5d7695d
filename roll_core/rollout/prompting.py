"""How observations become tokens and tokens become actions: token in, token out.

Invariant: what the policy sampled is never tokenised again. A prompter only says which tokens to *append* for the next
turn; the sequence that trains is the one that was sampled from, id for id.

Two formats. ``transcript``, for tiny models with a tokenizer of their own: the text of the game, ``> `` before each
action, a newline after it. ``chat``, for real checkpoints: their chat template, a system prompt, the admissible
commands, and the answer as ``<think>…</think><action>…</action>``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from roll_core.errors import RecipeError

log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What prompting needs of ``roll_core.models.Tokenizer``."""

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of ``text``, nothing added. Only with ``specials`` do special tokens written out become their ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def id_of(self, token: str) -> int: ...

    @property
    def special_tokens(self) -> Mapping[str, int]: ...


class ChatTemplate(Protocol):
    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class Response:
    """What the sampled tokens of a turn say. ``valid`` is false when no action could be read from them."""

    text: str
    action: str
    valid: bool = True


class Prompter(Protocol):
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]

    def opening(self, observation: Any, info: Mapping[str, Any]) -> list[int]:
        """The tokens in front of the first action."""
        ...

    def following(self, observation: Any, info: Mapping[str, Any], sampled: Sequence[int]) -> list[int]:
        """The tokens between ``sampled``, the turn just played, and the next action."""
        ...

    def parse(self, sampled: Sequence[int]) -> Response: ...

    def demonstrate(self, action: str) -> list[int]:
        """The tokens a policy would have to sample to take ``action``, end included."""
        ...


class TextRules:
    """Rewrites of observations, applied in order: ``[[pattern, replacement], …]`` as in ``re.sub``."""

    def __init__(self, rules: Sequence[tuple[str, str]] = ()) -> None:
        self._rules = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def __call__(self, observation: Any) -> str:
        text = str(observation)
        for pattern, replacement in self._rules:
            text = pattern.sub(replacement, text)
        return text.strip()


def transcript_text(observation: Any, rules: TextRules) -> str:
    """The text in front of an action."""
    return f"{rules(observation)}\n>"


def transcript_action(action: str) -> str:
    """The text of an action, end included."""
    return f" {action}\n"


class TranscriptPrompter:
    """Observation, line break, ``> ``, action, line break, observation… The break after an action is sampled: it ends
    the turn."""

    stop: tuple[str, ...] = ("\n",)

    def __init__(self, tokenizer: Tokenizer, rules: TextRules) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        newline = tokenizer.encode("\n")
        # Where a tokenizer has no line break of its own the stop string does the work.
        self.stop_token_ids: tuple[int, ...] = (newline[0],) if len(newline) == 1 else ()

    def opening(self, observation: Any, info: Mapping[str, Any]) -> list[int]:
        return self._tokenizer.encode(transcript_text(observation, self._rules))

    def following(self, observation: Any, info: Mapping[str, Any], sampled: Sequence[int]) -> list[int]:
        ended = self._tokenizer.decode(sampled).endswith("\n")
        return self._tokenizer.encode(("" if ended else "\n") + transcript_text(observation, self._rules))

    def parse(self, sampled: Sequence[int]) -> Response:
        text = self._tokenizer.decode(sampled)
        action = text.split("\n", 1)[0].strip()
        return Response(text, action, valid=bool(action))

    def demonstrate(self, action: str) -> list[int]:
        return self._tokenizer.encode(transcript_action(action))


_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_SYSTEM = "\u2063system\u2063"
_USER = "\u2063user\u2063"
_ASSISTANT = "\u2063assistant\u2063"
_THOUGHT = "\u2063thought\u2063"


class ChatPrompter:
    """A chat template, kept incremental: between two answers stands what the template puts around one user turn.

    The conversation is never rendered again, so nothing that was sampled can change under the policy's feet. Where a
    template would rewrite history (it drops the thoughts of earlier answers, or moves the system prompt to the last
    user turn) the conversation therefore stays as it was sampled: ``rewrites_history`` says so.

    Between two answers the ids are those of the rendered text as a whole. What the environment says is encoded apart
    only if it would otherwise make a special token, or break one.
    """

    stop: tuple[str, ...] = ()

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        end_token: str,
        system: str,
        rules: TextRules,
        show_admissible: bool,
        whole_answers: bool = False,
    ) -> None:
        """``end_token`` ends an answer in this template, e.g. ``<|im_end|>``. ``whole_answers``: the action is all that
        follows the thoughts, not only what stands in an <action> tag. Raises RecipeError when the template
        never writes it after an answer, or loses what it is given."""
        self._tokenizer = tokenizer
        self._end_token = end_token
        self._rules = rules
        self._show_admissible = show_admissible
        self._whole_answers = whole_answers
        self.stop_token_ids: tuple[int, ...] = (tokenizer.id_of(end_token),)
        self._first = _opening(template, system)
        self._next = _between(template)
        # An answer that was cut gets all of it; one that ended itself what follows its end.
        _, found, self._after_end = self._next.partition(end_token)
        if not found:
            raise RecipeError(
                f"prompt.end_token {end_token!r} does not end an answer in this chat template, which goes on with "
                f"{self._next.replace(_USER, '…')!r} after one. Name the token that does."
            )
        self.rewrites_history = _rewrites_history(template)
        if self.rewrites_history:
            log.info("the chat template rewrites earlier answers; the conversation keeps them as they were sampled")

    def opening(self, observation: Any, info: Mapping[str, Any]) -> list[int]:
        return self._around(self._first, observation, info)

    def following(self, observation: Any, info: Mapping[str, Any], sampled: Sequence[int]) -> list[int]:
        if not sampled or sampled[-1] not in self.stop_token_ids:
            return self._around(self._next, observation, info)
        # Tokenizers treat the very first word of a text in their own way: what follows the end is read after it.
        ids = self._around(self._end_token + self._after_end, observation, info)
        assert ids[0] == self.stop_token_ids[0]
        return ids[1:]

    def _around(self, template: str, observation: Any, info: Mapping[str, Any]) -> list[int]:
        before, after = template.split(_USER, 1)
        user = self._user(observation, info)
        encode, specials = self._tokenizer.encode, set(self._tokenizer.special_tokens.values())
        whole = encode(before + user + after, specials=True)
        parts = (encode(before, specials=True), encode(after, specials=True))
        if [i for i in whole if i in specials] == [i for part in parts for i in part if i in specials]:
            return whole
        return [*parts[0], *encode(user), *parts[1]]

    def _user(self, observation: Any, info: Mapping[str, Any]) -> str:
        text = self._rules(observation)
        commands = info.get("admissible_commands")
        if not self._show_admissible or not commands:
            return text
        return f"{text}\n\nAdmissible commands:\n" + "\n".join(f"- {c}" for c in commands)

    def parse(self, sampled: Sequence[int]) -> Response:
        text = self._tokenizer.decode([i for i in sampled if i not in self.stop_token_ids])
        if self._whole_answers:
            action = text.rsplit("</think>", 1)[-1].strip()
            return Response(text, action, valid=bool(action))
        found = _ACTION.findall(text)
        action = found[-1].strip() if found else text.rsplit("</think>", 1)[-1].strip()
        return Response(text, action, valid=bool(found))

    def demonstrate(self, action: str) -> list[int]:
        answer = self._tokenizer.encode(action if self._whole_answers else f"<action>{action}</action>")
        return [*answer, *self.stop_token_ids]


def _opening(template: ChatTemplate, system: str) -> str:
    """The text in front of the first answer, with :data:`_USER` in it. A template that knows no system role (it raises,
    or leaves the prompt out) gets the system prompt at the head of the first user turn."""
    user = {"role": "user", "content": _USER}
    if not system:
        return _kept(template.render([user], add_generation_prompt=True), _USER)
    try:
        text = template.render([{"role": "system", "content": _SYSTEM}, user], add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001 - a template is somebody's program and raises what it likes
        log.info("the chat template takes no system prompt (%s): it goes to the head of the first turn", error)
        text = ""
    if _SYSTEM not in text or _USER not in text:
        text = template.render([{"role": "user", "content": f"{_SYSTEM}\n\n{_USER}"}], add_generation_prompt=True)
    return _kept(_kept(text, _SYSTEM).replace(_SYSTEM, system), _USER)


def _between(template: ChatTemplate) -> str:
    """The text from the end of an answer to the beginning of the next, with :data:`_USER` in it."""
    dialogue = [
        {"role": "user", "content": "…"},
        {"role": "assistant", "content": _ASSISTANT},
        {"role": "user", "content": _USER},
    ]
    text = _kept(template.render(dialogue, add_generation_prompt=True), _ASSISTANT)
    return _kept(text.split(_ASSISTANT, 1)[1], _USER)


def _kept(text: str, mark: str) -> str:
    if text.count(mark) != 1:
        raise RecipeError(
            f"the chat template renders a message {text.count(mark)} times where it should once: {text!r}. A recipe "
            "with another template, or prompt.format=transcript, is needed."
        )
    return text


def _rewrites_history(template: ChatTemplate) -> bool:
    """Whether an earlier answer looks different once the conversation has gone on."""
    answer = f"<think>\n{_THOUGHT}\n</think>\n\n{_ASSISTANT}"
    user = {"role": "user", "content": "…"}
    dialogue = [user, {"role": "assistant", "content": answer}, user]
    return answer not in template.render(dialogue, add_generation_prompt=True)

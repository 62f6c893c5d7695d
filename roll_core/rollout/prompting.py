"""How observations become tokens and tokens become actions: token in, token out.

Invariant: what the policy sampled is never tokenised again. A prompter only says which tokens to *append* for the next
turn; the sequence that trains is the one that was sampled from, id for id.

Two formats. ``transcript``, for tiny models with a tokenizer of their own: the text of the game, ``> `` before each
action, a newline after it. ``chat``, for real checkpoints: their chat template, a system prompt, the admissible
commands, and the answer as ``<think>…</think><action>…</action>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What prompting needs of ``roll_core.models.Tokenizer``."""

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of ``text``, nothing added. Only with ``specials`` do special tokens written out become their ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def id_of(self, token: str) -> int: ...


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
_USER = "\u2063user\u2063"
_ASSISTANT = "\u2063assistant\u2063"


class ChatPrompter:
    """A chat template, kept incremental: between two answers stands what the template puts around one user turn.

    What the environment says is encoded apart from the template around it, so that it cannot forge special tokens.
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
    ) -> None:
        """``end_token`` ends an answer in this template, e.g. ``<|im_end|>``."""
        self._tokenizer = tokenizer
        self._end_token = end_token
        self._rules = rules
        self._show_admissible = show_admissible
        self.stop_token_ids: tuple[int, ...] = (tokenizer.id_of(end_token),)
        user = {"role": "user", "content": _USER}
        start = [{"role": "system", "content": system}] if system else []
        self._first = template.render([*start, user], add_generation_prompt=True)
        dialogue = [{"role": "user", "content": "…"}, {"role": "assistant", "content": _ASSISTANT}, user]
        self._next = template.render(dialogue, add_generation_prompt=True).split(_ASSISTANT, 1)[1]

    def opening(self, observation: Any, info: Mapping[str, Any]) -> list[int]:
        return self._around(self._first, observation, info)

    def following(self, observation: Any, info: Mapping[str, Any], sampled: Sequence[int]) -> list[int]:
        ended = bool(sampled) and sampled[-1] in self.stop_token_ids  # then the policy has sampled the end itself
        return self._around(self._next.removeprefix(self._end_token) if ended else self._next, observation, info)

    def _around(self, template: str, observation: Any, info: Mapping[str, Any]) -> list[int]:
        before, after = template.split(_USER, 1)
        user = self._tokenizer.encode(self._user(observation, info))
        return self._tokenizer.encode(before, specials=True) + user + self._tokenizer.encode(after, specials=True)

    def _user(self, observation: Any, info: Mapping[str, Any]) -> str:
        text = self._rules(observation)
        commands = info.get("admissible_commands")
        if not self._show_admissible or not commands:
            return text
        return f"{text}\n\nAdmissible commands:\n" + "\n".join(f"- {c}" for c in commands)

    def parse(self, sampled: Sequence[int]) -> Response:
        text = self._tokenizer.decode([i for i in sampled if i not in self.stop_token_ids])
        found = _ACTION.findall(text)
        action = found[-1].strip() if found else text.rsplit("</think>", 1)[-1].strip()
        return Response(text, action, valid=bool(found))

    def demonstrate(self, action: str) -> list[int]:
        answer = self._tokenizer.encode(f"<action>{action}</action>")
        return [*answer, *self.stop_token_ids]

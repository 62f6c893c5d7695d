"""Calls of tools in what the policy sampled: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` (Hermes, Qwen).

Invariants: nothing raises, a policy may sample anything; what is no call stays in the text; an answer either has calls,
or all of its text is content. A block that is left open at the end counts where its JSON is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str
    """A JSON object, as text."""

    @property
    def object(self) -> Any:
        """The arguments; the bare text where a client gave no JSON."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return self.arguments


@dataclass(frozen=True, slots=True)
class Answer:
    content: str
    calls: tuple[Call, ...] = ()
    malformed: int = 0
    """Blocks that are no call: no JSON, no name, arguments that are no object, or a name nobody offered."""


def read_answer(text: str, offered: Sequence[str]) -> Answer:
    """``text`` as content and calls of the tools named in ``offered``; calls in a thought are none."""
    if not offered or "<tool_call>" not in text:
        return Answer(text)
    head, ended, said = text.rpartition("</think>")
    calls: list[Call] = []
    malformed = 0

    def replace(found: re.Match[str]) -> str:
        nonlocal malformed
        if (call := _call(found.group(1), offered)) is None:
            malformed += 1
            return found.group(0)
        calls.append(call)
        return ""

    rest = _BLOCK.sub(replace, said)
    if not calls:
        return Answer(text, (), malformed)
    return Answer((head + ended + rest).strip(), tuple(calls), malformed)


def _call(block: str, offered: Sequence[str]) -> Call | None:
    try:
        value: Any = json.loads(block)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("name") not in offered:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some checkpoints quote the object once more
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def names_of(tools: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Names of the functions in an OpenAI ``tools`` list, which was checked."""
    return tuple(tool["function"]["name"] for tool in tools)

"""Chat templates of real checkpoints: messages to the text the model was trained on.

Invariants: a template is somebody else's program, so it runs in jinja2's immutable sandbox and sees only what it is
given; rendering is pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from roll_core.errors import CheckpointError

Message = Mapping[str, Any]
"""``role`` and ``content``, and what else the template knows (``tool_calls``, ``reasoning_content``)."""


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML, which checkpoints were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


class ChatTemplate:
    """``ChatTemplate.load(directory)`` finds the template of a Hugging Face checkpoint."""

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None) -> None:
        """``variables``: what every rendering sees besides the messages, e.g. ``bos_token``."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        self._template = environment.from_string(source)
        self._variables = dict(variables or {})

    @classmethod
    def load(cls, directory: Path | str) -> ChatTemplate:
        """Read chat_template.jinja, else the entry in tokenizer_config.json (``default`` where there are several)."""
        directory = Path(directory)
        config_path = directory / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {}
        jinja_path = directory / "chat_template.jinja"
        source = jinja_path.read_text(encoding="utf-8") if jinja_path.exists() else config.get("chat_template")
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        if not isinstance(source, str):
            raise CheckpointError(f"{directory} has no chat template; name one in the recipe.")
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = {n: config[n]["content"] if isinstance(config[n], dict) else config[n] for n in names if config.get(n)}
        return cls(source, tokens)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation; with ``add_generation_prompt`` it ends where the assistant is to speak."""
        given = {**self._variables, **variables}
        return self._template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **given)

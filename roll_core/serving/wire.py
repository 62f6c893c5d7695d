"""What comes in over the endpoint, and its errors, in OpenAI's shapes.

Invariants: a parameter that is understood is obeyed, one that changes the meaning of an answer and cannot be obeyed is
refused by name; parameters that are unknown are left alone, as clients send many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ApiError(Exception):
    """Refuses a request. ``code`` is for programs, the message for people."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class FunctionCall(BaseModel):
    name: str
    arguments: str = "{}"
    """JSON, as text."""


class ToolCall(BaseModel):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Part(BaseModel):
    """A part of a content that is a list. Only text is understood."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str = ""
    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    n: int = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    seed: int | None = None
    user: str = ""
    response_format: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the chat template, e.g. ``enable_thinking``."""
    return_token_ids: bool = False
    """Also tell the ids of prompt and answer, and the policy version of each token sampled."""

    @property
    def limit(self) -> int | None:
        given = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        return min(given, default=None)

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in given if s)

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the policy is told about."""
        return [] if self.tool_choice == "none" else self.tools


def parse_chat(body: bytes) -> ChatRequest:
    """Raises ApiError, naming the parameter."""
    try:
        request = ChatRequest.model_validate(json.loads(body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(
            400, f"{where or 'The body'}: {first['msg']}.", code="invalid_value", param=where or None
        ) from error
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.", code="invalid_json") from error
    _refuse_what_cannot_be_obeyed(request)
    return request


def _refuse_what_cannot_be_obeyed(request: ChatRequest) -> None:
    penalties = request.frequency_penalty or request.presence_penalty or request.logit_bias
    choice = request.tool_choice
    refusals: Mapping[str, tuple[bool, str]] = {
        "n": (request.n != 1, f"n={request.n}: one answer per request; send several requests."),
        "top_logprobs": (
            request.top_logprobs != 0,
            "top_logprobs must be 0: only what was sampled is known.",
        ),
        "response_format": (
            (request.response_format or {"type": "text"}).get("type") != "text",
            "response_format must be text: answers are sampled freely, not constrained.",
        ),
        "tool_choice": (
            choice not in ("auto", "none"),
            f"tool_choice {choice!r}: only auto and none; a call is never forced on the policy.",
        ),
        "tools": (
            any(not _is_function(tool) for tool in request.tools),
            'each of tools must be {"type": "function", "function": {"name": …}}.',
        ),
        "logit_bias": (
            bool(penalties),
            "Penalties and logit_bias change what is sampled: leave them out.",
        ),
    }
    for name, (refused, why) in refusals.items():
        if refused:
            raise ApiError(400, why, code="unsupported_parameter", param=name)


def _is_function(tool: dict[str, Any]) -> bool:
    function = tool.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str)


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    def as_dict(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

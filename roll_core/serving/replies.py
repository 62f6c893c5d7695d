"""Answers in OpenAI's shapes: whole, or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from roll_core.rollout.prompting import Tokenizer
from roll_core.serving.session import Reply


def completion(reply: Reply, model: str, tokenizer: Tokenizer) -> dict[str, Any]:
    request = reply.ready.request
    choice: dict[str, Any] = {
        "index": 0,
        "message": _message(reply),
        "finish_reason": reply.finish_reason,
        "logprobs": _logprobs(reply, tokenizer) if request.logprobs else None,
    }
    if request.return_token_ids:
        choice["token_ids"] = list(reply.node.generation.token_ids)
        choice["versions"] = list(reply.node.generation.versions)
    body: dict[str, Any] = {
        **_head(reply, model, "chat.completion"),
        "choices": [choice],
        "usage": reply.usage.as_dict(),
    }
    if request.return_token_ids:
        body["prompt_token_ids"] = list(reply.ready.prompt_ids)
    return body


def events(reply: Reply, model: str, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The answer as a stream. It comes when all of it was sampled: the engine gives whole answers."""
    request = reply.ready.request
    head = _head(reply, model, "chat.completion.chunk")
    message = _message(reply)
    calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls", ()))]
    delta: dict[str, Any] = {"role": "assistant", "content": message["content"]}
    if calls:
        delta["tool_calls"] = calls
    logprobs = _logprobs(reply, tokenizer) if request.logprobs else None
    yield event({**head, "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}]})
    yield event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish_reason}]})
    if request.stream_options is not None and request.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": reply.usage.as_dict()})
    yield b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def _head(reply: Reply, model: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{reply.ready.number}-{reply.node.number}",
        "object": kind,
        "created": reply.created_s,
        "model": model,
        "system_fingerprint": f"version-{max(reply.node.generation.versions, default=0)}",
    }


def _message(reply: Reply) -> dict[str, Any]:
    answer = reply.answer
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [
            {
                "id": f"call_{reply.node.number}_{i}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(answer.calls)
        ]
    return message


def _logprobs(reply: Reply, tokenizer: Tokenizer) -> dict[str, Any]:
    generation = reply.node.generation
    content = []
    for token_id, logprob in zip(generation.token_ids, generation.logprobs, strict=True):
        text = tokenizer.decode([token_id])
        content.append({"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
    return {"content": content}

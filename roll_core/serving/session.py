"""One client's session: its requests become prompts of the engine, its answers are recorded with tokens, log-probs and
versions.

Invariants: every token sampled for the session is either in :attr:`chats` or counted in :attr:`unused_tokens`; a
request that its client gave up is ended in the engine; when no further answer can come, :attr:`ended` is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from roll_core.engines.base import Engine, SamplingParams
from roll_core.errors import EngineDead, NoProgress, RollError
from roll_core.rollout.clock import now_s
from roll_core.serving.chats import Chats, Node, Prompt
from roll_core.serving.rendering import Renderer, Said, Setting, Unrenderable
from roll_core.serving.tools import Answer, Call
from roll_core.serving.wire import ApiError, ChatRequest, Message, Usage

_SEED_STRIDE = 0x9E3779B1
_ABORT_S = 10.0


@dataclass(frozen=True, slots=True)
class Bounds:
    max_tokens_per_answer: int
    max_context_tokens: int
    generate_s: float
    max_answers: int = 0
    """Of a session; 0: any number."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A request that was understood and fits."""

    request: ChatRequest
    prompt: Prompt
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    number: int


@dataclass(frozen=True, slots=True)
class Reply:
    ready: Ready
    node: Node
    answer: Answer
    finish_reason: str
    usage: Usage
    created_s: int


class Session:
    def __init__(
        self,
        name: str,
        renderer: Renderer,
        engine: Engine,
        sampling: SamplingParams,
        bounds: Bounds,
        *,
        fixed_sampling: bool,
        engine_session: str = "",
    ) -> None:
        """``sampling``: what holds where a request says nothing; ``fixed_sampling``: also where it does, as training
        needs it. Its ``seed`` begins a stream of random numbers for each answer."""
        self.name = name
        self.chats = Chats(renderer)
        self.unused_tokens = 0
        self.limit = ""
        """The limit that refused a request: ``turns`` or ``context``."""
        self.error: RollError | None = None
        """Why the engine answers no more."""
        self.aborted = False
        """The engine gave up an answer that nobody else had."""
        self.ended = asyncio.Event()
        """Set when a limit or the engine ends the session."""
        self.closed = False
        self._renderer = renderer
        self._engine = engine
        self._sampling = sampling
        self._bounds = bounds
        self._fixed = fixed_sampling
        self._engine_session = engine_session or name
        self._started = 0
        self._running: dict[str, asyncio.Task[Reply]] = {}
        self._given_up: set[str] = set()

    # --- before sampling ---------------------------------------------------------------------------------------------

    def ready(self, request: ChatRequest) -> Ready:
        """Raises ApiError: a limit is reached, the template takes no such messages, or the session is over."""
        if self.closed:
            raise ApiError(410, f"Session {self.name} is over.", code="session_over")
        bounds = self._bounds
        if bounds.max_answers and self._started >= bounds.max_answers:
            self._reached("turns")
            raise ApiError(
                400,
                f"The session has had its {bounds.max_answers} answers (rollout.max_turns).",
                code="session_limit_exceeded",
            )
        try:
            prompt = self.chats.prompt([_said(m) for m in request.messages], _setting(request))
        except Unrenderable as error:
            raise ApiError(400, f"{error}.", code="unsupported_messages", param="messages") from error
        ids = tuple(prompt.ids())
        room = bounds.max_context_tokens - len(ids)
        if room < 1:
            self._reached("context")
            raise ApiError(
                400,
                f"The messages are {len(ids)} tokens; this model's maximum context length is "
                f"{bounds.max_context_tokens} tokens, with at least one for the answer.",
                code="context_length_exceeded",
                param="messages",
            )
        number = self._started
        self._started += 1
        return Ready(request, prompt, ids, self._params(request, room, number), number)

    def _reached(self, limit: str) -> None:
        self.limit = self.limit or limit
        self.ended.set()

    def _params(self, request: ChatRequest, room: int, number: int) -> SamplingParams:
        params = self._sampling
        seed = params.seed if self._fixed or request.seed is None else request.seed
        if not self._fixed:
            params = replace(
                params,
                temperature=params.temperature if request.temperature is None else request.temperature,
                top_p=params.top_p if request.top_p is None else request.top_p,
            )
        return replace(
            params,
            max_tokens=min(room, self._bounds.max_tokens_per_answer, request.limit or room),
            stop=(*params.stop, *request.stops),
            # One stream per answer: a replayed session samples the same tokens, two answers do not repeat each other.
            seed=None if seed is None else (seed + _SEED_STRIDE * number) % 2**31,
        )

    # --- sampling ----------------------------------------------------------------------------------------------------

    async def answer(self, ready: Ready) -> Reply:
        """Raises ApiError with status 503 when it is not the client's fault. Cancelling it ends the request."""
        request_id = f"{self.name}/{ready.number}"
        task = asyncio.ensure_future(self._answer(request_id, ready))
        self._running[request_id] = task
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._give_up(request_id, task)
            raise
        finally:
            self._running.pop(request_id, None)

    async def _answer(self, request_id: str, ready: Ready) -> Reply:
        started_s = now_s()
        engine, deadline_s = self._engine, self._bounds.generate_s
        try:
            async with asyncio.timeout(deadline_s):
                generation = await engine.generate(
                    request_id, ready.prompt_ids, ready.params, session=self._engine_session
                )
        except TimeoutError as error:
            raise self._fail(
                NoProgress(
                    f"the engine did not finish {request_id} within {deadline_s:g} s; its state: {engine.stats()}. "
                    "Raise rollout.generate_s if the engine is only slow."
                )
            ) from error
        except EngineDead as error:
            raise self._fail(error) from error
        except ValueError as error:
            raise ApiError(400, f"The engine refuses the request: {error}.", code="invalid_value") from error
        if generation.finish_reason == "abort":
            self.unused_tokens += len(generation.token_ids)
            if request_id not in self._given_up:
                self.aborted = True
                self.ended.set()
            raise ApiError(503, "The generation was aborted.", code="aborted", kind="server_error")
        stops = ready.request.stops
        answer = self._renderer.read(generation.token_ids, ready.prompt.setting, stops)
        said = Said("assistant", answer.content, answer.calls)
        node = self.chats.add(
            ready.prompt, generation, said, valid=not answer.malformed and bool(answer.content or answer.calls),
            generate_s=now_s() - started_s,
        )  # fmt: skip
        reason = "tool_calls" if answer.calls else generation.finish_reason
        usage = Usage(len(ready.prompt_ids), len(generation.token_ids))
        return Reply(ready, node, answer, reason, usage, int(time.time()))

    def _fail(self, error: RollError) -> ApiError:
        self.error = self.error or error
        self.ended.set()
        return ApiError(503, str(error), code="engine_failed", kind="server_error")

    async def _give_up(self, request_id: str, task: asyncio.Task[Reply]) -> None:
        """End the generation, and wait for what it had sampled: somebody is charged for it."""
        self._given_up.add(request_id)
        with contextlib.suppress(asyncio.CancelledError, TimeoutError, EngineDead, ApiError):
            async with asyncio.timeout(_ABORT_S):
                await self._engine.abort(request_id)
                await asyncio.shield(task)
        if not task.done():
            task.cancel()

    async def close(self) -> None:
        """Answer nothing more, and end what is being sampled."""
        self.closed = True
        for request_id, task in list(self._running.items()):
            await self._give_up(request_id, task)


def _setting(request: ChatRequest) -> Setting:
    tools = tuple(json.dumps(tool, sort_keys=True) for tool in request.offered)
    variables = tuple(sorted(request.chat_template_kwargs.items()))
    return Setting(tools, variables, request.offered)


def _said(message: Message) -> Said:
    calls: Sequence[Call] = [Call(c.function.name, c.function.arguments) for c in message.tool_calls or ()]
    role = "system" if message.role == "developer" else message.role
    return Said(role, message.text, tuple(calls), message.name or "", message.tool_call_id or "")

"""A policy that says what a test wants, behind the real endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from roll_core.engines.base import EngineStats, SamplingParams
from roll_core.models import ChatTemplate, train_tokenizer
from roll_core.serving.rendering import TemplateRenderer
from roll_core.serving.session import Bounds, Session
from roll_core.types import Generation

END = "<|im_end|>"
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER = train_tokenizer(["a chat of words\n"], 300, ("<|im_start|>", END))


class Parrot:
    """Says the next of ``lines``, the last one again and again; an error among them is raised, None never comes."""

    def __init__(self, lines: Sequence[str | Exception | None] = ("hello",)) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []
        self.params: list[SamplingParams] = []
        self.aborted: list[str] = []
        self.released: list[str] = []
        self.asked = asyncio.Event()
        self._waiting: dict[str, asyncio.Event] = {}

    async def generate(self, request_id, prompt_ids, params: SamplingParams, *, session="") -> Generation:
        self.prompts.append(TOKENIZER.decode(prompt_ids))
        self.params.append(params)
        line = self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]
        self.asked.set()
        if isinstance(line, Exception):
            raise line
        if line is None:
            self._waiting[request_id] = asyncio.Event()
            await self._waiting[request_id].wait()
            return Generation((5, 6), (-0.5, -0.5), (3, 3), "abort")
        ids = [*TOKENIZER.encode(line), TOKENIZER.id_of(END)]
        cut = tuple(ids[: params.max_tokens])
        return Generation(cut, (-0.5,) * len(cut), (3,) * len(cut), "stop" if len(cut) == len(ids) else "length")

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self._waiting[request_id].set()

    def release(self, session: str) -> None:
        self.released.append(session)

    def stats(self) -> EngineStats:
        return EngineStats(3, 0, 0, 0, 0, 0, 1, 0.0)


@pytest.fixture
def renderer() -> TemplateRenderer:
    return TemplateRenderer(TOKENIZER, ChatTemplate(TEMPLATE), END)


@pytest.fixture
def make_session(renderer: TemplateRenderer) -> Callable[..., Session]:
    def make(engine: Parrot, name: str = "s", *, fixed: bool = False, **bounds: float) -> Session:
        limits = Bounds(**({"max_tokens_per_answer": 100, "max_context_tokens": 600, "generate_s": 5.0} | bounds))
        sampling = SamplingParams(max_tokens=40, temperature=0.7, stop_token_ids=(TOKENIZER.id_of(END),), seed=1)
        return Session(name, renderer, engine, sampling, limits, fixed_sampling=fixed)

    return make

"""What an engine is: samples tokens for token sequences, under whatever weights it holds at the moment.

Invariants: every sampled token carries the version that sampled it and the exact log-prob it was sampled with; a
request ends in exactly one :class:`Generation` or one error; an aborted request returns what it had (``abort``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from roll_core.types import Generation, Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. ``temperature`` 0 is greedy; its log-probs are then those of temperature 1.

    ``stop_token_ids`` end a generation and are kept in it.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    """Strings that end a generation; the tokens that completed the string are kept."""
    seed: int | None = None
    """Seed of this request's own random stream, so that what is sampled does not depend on which other requests
    happen to run beside it. None: the engine's common stream."""
    sampled: int = 0
    """Tokens of the answer that stand at the end of the prompt already, sampled elsewhere: the request's random stream
    goes on after them, so that who moves draws what it would have drawn."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, and the pressure of this moment."""

    version: int
    generated_tokens: int
    prefilled_tokens: int
    cached_tokens: int
    """Prompt tokens that needed no computation: the session's KV cache held them, or a request of the same pass that
    begins alike computed them."""
    running: int
    waiting: int
    slots: int
    busy_s: float
    """Seconds of computing."""
    load_s: float = 0.0
    """Seconds of taking over new weights, in which nothing is generated."""
    restarts: int = 0
    """Engines that died and were replaced."""


class Engine(Protocol):
    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        """Continue ``prompt_ids``. Requests of one ``session`` (an episode) extend each other, so its KV cache is kept
        between them until :meth:`release`. Raises EngineDead; ValueError when the prompt exceeds the context."""
        ...

    async def abort(self, request_id: str) -> None:
        """End a request now; its ``generate`` returns what was sampled so far. Unknown ids are ignored."""
        ...

    def release(self, session: str) -> None:
        """Forget a session's KV cache."""
        ...

    async def load_weights(self, weights: Weights) -> None:
        """Suspend generation, load, resume. Requests in flight keep their tokens and go on under the new weights with
        their KV cache recomputed."""
        ...

    def stats(self) -> EngineStats: ...


def check_request(
    prompt_ids: Sequence[int], params: SamplingParams, *, max_context: int, vocab: int, has_tokenizer: bool
) -> int:
    """How many tokens the context has room for after the prompt. Raises ValueError for what no engine can play."""
    room = max_context - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise ValueError(f"a prompt of {len(prompt_ids)} tokens leaves no room in a context of {max_context}")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab:
        raise ValueError(f"prompt ids must be within 0 … {vocab - 1}")
    if params.max_tokens < 1 or params.temperature < 0 or not 0 < params.top_p <= 1:
        raise ValueError(f"expected max_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, found {params}")
    if params.stop and not has_tokenizer:
        raise ValueError("stop strings need an engine with a tokenizer")
    return room


def check_fit(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError when a parameter of ``shapes`` is missing in ``tensors`` or has another shape."""
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        if found != shape:
            raise ValueError(f"weights do not fit the model: {name} is {found}, expected {shape}")

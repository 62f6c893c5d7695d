"""What an engine is: samples tokens for token sequences, under whatever weights it holds at the moment.

Invariants: every sampled token carries the version that sampled it and the exact log-prob it was sampled with; a
request ends in exactly one :class:`Generation` or one error; an aborted request returns what it had (``abort``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from roll_core.types import Generation, Weights


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
    """Prompt tokens that needed no computation because the session's KV cache held them."""
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

"""A request that may be played on several engines, one after the other, and is one answer in the end.

Invariants: what an engine sampled is kept wherever the request goes next; no token is in it twice; the random stream of
a request with a seed goes on where it was left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from roll_core.engines.base import SamplingParams
from roll_core.types import FinishReason, Generation


@dataclass(slots=True)
class Routed:
    id: str
    session: str
    prompt_ids: Sequence[int]
    params: SamplingParams
    parts: list[Generation] = field(default_factory=list)
    """What engines that it left behind had sampled of it."""
    engine: int = -1
    moves_to: int = -1
    aborted: bool = False
    turn: asyncio.Future[int] | None = None

    @property
    def name(self) -> str:
        """An engine knows each visit as a request of its own."""
        return f"{self.id}#{len(self.parts)}" if self.parts else self.id

    def rest(self) -> tuple[SamplingParams, Sequence[int]]:
        """What is left to sample, and from what, after the parts that other engines have sampled."""
        if not self.parts:
            return self.params, self.prompt_ids
        sampled = [i for part in self.parts for i in part.token_ids]
        left, before = self.params.max_tokens - len(sampled), self.params.sampled + len(sampled)
        return replace(self.params, max_tokens=left, sampled=before), [*self.prompt_ids, *sampled]

    def keep(self, partial: Generation | None) -> Generation | None:
        """Take what an engine had sampled when it died; returned if that was the whole answer, only not delivered."""
        if partial is None or not partial.token_ids:
            return None
        if partial.token_ids[-1] in self.params.stop_token_ids:
            return replace(partial, finish_reason="stop")
        if len(partial.token_ids) >= self.rest()[0].max_tokens:
            return replace(partial, finish_reason="length")
        # The last token may have completed a stop string, which only the dead engine could tell: it is drawn again.
        count = len(partial.token_ids) - bool(self.params.stop)
        if count:
            kept = (partial.token_ids[:count], partial.logprobs[:count], partial.versions[:count])
            self.parts.append(Generation(*kept, "abort"))
        return None

    def joined(self, last: Generation) -> Generation:
        """The whole answer, which ends with ``last``."""
        if not self.parts:
            return last
        reason: FinishReason = last.finish_reason
        parts = [*self.parts, last]
        return Generation(
            tuple(i for part in parts for i in part.token_ids),
            tuple(p for part in parts for p in part.logprobs),
            tuple(v for part in parts for v in part.versions),
            reason,
        )

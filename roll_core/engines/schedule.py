"""What goes into one pass of the embedded engine.

Each pass takes one token of every sequence that decodes and up to a budget of those that still read their prompt, so a
long prompt delays the others by a bounded amount. Siblings of a group begin with the same prompt: what one of them
reads in a pass the others copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from roll_core.engines.base import SamplingParams
from roll_core.engines.decoder import Piece
from roll_core.engines.slots import common_prefix
from roll_core.engines.stopping import StopStrings
from roll_core.types import FinishReason, Generation

_LEAST_SHARED = 4
"""Tokens; copying fewer costs what computing them does."""


@dataclass(slots=True, eq=False)  # each is itself: comparing fields was a twentieth of the worker's time
class Request:
    """One ``generate`` call. ``ids`` is prompt and sampled tokens; the first ``computed`` of them are in the cache."""

    id: str
    params: SamplingParams
    session: str
    ids: list[int]
    prompt_size: int
    limit: int
    seed: int
    stop_ids: frozenset[int]
    stop_strings: StopStrings | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Generation]
    slot: int = -1
    computed: int = 0
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def generation(self, reason: FinishReason) -> Generation:
        count = len(self.versions)  # appended last: a worker that died between the lists leaves no torn token
        sampled = tuple(self.ids[self.prompt_size : self.prompt_size + count])
        return Generation(sampled, tuple(self.logprobs[:count]), tuple(self.versions), reason)


def schedule(running: Sequence[Request], budget: int) -> tuple[list[Request], list[Piece], int]:
    """Single tokens first, by slot (the decoder groups neighbours), then as much prefill as ``budget`` allows. Last:
    how many tokens are copied, which count as computed from here on."""
    singles, spans = list[Request](), list[Request]()
    pieces: list[Piece] = []
    copied = 0
    for request in running:
        if len(request.ids) - request.computed > 1:
            copied += _share(request, spans, pieces)
        left = len(request.ids) - request.computed
        size = min(left, budget)
        if left == 1 or size == 1:  # the budget's last token is a single like any other
            singles.append(request)
        elif size > 1:
            spans.append(request)
            pieces.append(Piece(request.slot, request.computed, request.ids[request.computed :][:size], []))
        budget -= size if left > 1 else 0
    singles.sort(key=lambda r: r.slot)
    ones = [Piece(r.slot, r.computed, r.ids[r.computed : r.computed + 1]) for r in singles]
    return singles + spans, ones + pieces, copied


def _share(request: Request, spans: Sequence[Request], pieces: Sequence[Piece]) -> int:
    """Tokens of ``request`` that one of this pass's ``pieces`` computes anyway, since all before them is equal too. At
    least the last token is left, for its logits."""
    best, most = None, request.computed + _LEAST_SHARED - 1
    for other, piece in zip(reversed(spans), reversed(pieces), strict=True):  # siblings come one after the other
        if piece.start == request.computed:
            size = piece.start + len(piece.token_ids)
            same = min(common_prefix(other.ids[:size], request.ids), len(request.ids) - 1)
            if same > most:
                best, most = piece, same
                if same == len(request.ids) - 1:
                    break
    if best is None:
        return 0
    count = most - request.computed
    best.shared.append((request.slot, count))
    request.computed = most
    return count

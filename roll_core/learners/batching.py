"""Which rows go through the model together, and on which rank. Pure.

Invariants: every row of some length is in exactly one micro-batch of one rank; what a plan looks like changes time and
memory, never the result.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from torch import Tensor, arange


def row_lengths(mask_BT: Tensor) -> list[int]:
    """Tokens of each row up to its last response token: what follows can neither be a target nor influence one."""
    position_T = arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    lengths: list[int] = ((mask_BT > 0) * position_T).amax(1).tolist()
    return lengths


def micro_batches(rows: list[int], lengths: list[int], tokens: int, *, packed: bool = False) -> Iterator[list[int]]:
    """Split ``rows`` (indices into ``lengths``) so that none holds more than ``tokens``, padding counted. ``packed``:
    there is no padding, rows of one micro-batch lie end to end.

    Longest first: rows of similar length share a batch, and running out of memory happens at once or never. Rows of
    length 0 are left out.
    """
    ordered = sorted((r for r in rows if lengths[r]), key=lambda r: (-lengths[r], r))
    if packed:
        yield from _filled(ordered, lengths, tokens)
        return
    batch: list[int] = []
    for row in ordered:
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _filled(ordered: list[int], lengths: list[int], tokens: int) -> list[list[int]]:
    """Each row goes where it fits first; a row that fits nowhere begins a micro-batch."""
    batches: list[list[int]] = []
    room: list[int] = []
    for row in ordered:
        place = next((i for i, left in enumerate(room) if lengths[row] <= left), None)
        if place is None:
            batches.append([row])
            room.append(tokens - lengths[row])
        else:
            batches[place].append(row)
            room[place] -= lengths[row]
    return batches


def deal(
    rows: list[int], lengths: list[int], tokens: int, ranks: int, *, packed: bool = False
) -> list[list[list[int]]]:
    """The micro-batches of each rank: every row of some length once, at most ``tokens`` in each (or one row), and as
    many for every rank, the last ones empty where there is no more to do.

    The longest row left goes to whoever has the fewest tokens: a step lasts as long as its slowest rank.
    """
    heap = [(0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted((r for r in rows if lengths[r]), key=lambda r: (-lengths[r], r)):
        load, rank = heapq.heappop(heap)
        shares[rank].append(row)
        heapq.heappush(heap, (load + lengths[row], rank))
    dealt = [list(micro_batches(share, lengths, tokens, packed=packed)) for share in shares]
    most = max(len(share) for share in dealt)
    return [[*share, *([] for _ in range(most - len(share)))] for share in dealt]


def padded_positions(batches: Iterable[list[int]], lengths: list[int]) -> int:
    """Positions that go through the model when the rows of each micro-batch are padded to its longest."""
    return sum(len(rows) * max(lengths[r] for r in rows) for rows in batches if rows)

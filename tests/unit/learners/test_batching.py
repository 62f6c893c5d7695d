"""Rows are shared out whole: padded or packed, over one rank or several."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roll_core.learners.batching import deal, micro_batches, padded_positions

LENGTHS = st.lists(st.integers(0, 50), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 150), st.integers(1, 5), st.booleans())
def test_every_row_is_dealt_to_one_rank_and_all_take_as_many_passes(
    lengths: list[int], tokens: int, ranks: int, packed: bool
) -> None:
    dealt = deal(list(range(len(lengths))), lengths, tokens, ranks, packed=packed)
    assert len(dealt) == ranks
    assert len({len(share) for share in dealt}) == 1
    rows = sorted(row for share in dealt for some in share for row in some)
    assert rows == [row for row, length in enumerate(lengths) if length]
    for some in (some for share in dealt for some in share if some):
        size = sum(lengths[r] for r in some) if packed else padded_positions([some], lengths)
        assert len(some) == 1 or size <= tokens
        assert lengths[some[0]] == max(lengths[r] for r in some)
    loads = [sum(lengths[r] for some in share for r in some) for share in dealt]
    assert max(loads) - min(loads) <= max(lengths)


@given(LENGTHS, st.integers(1, 150))
def test_packed_rows_need_no_more_passes_and_no_two_of_them_would_fit_in_one(lengths: list[int], tokens: int) -> None:
    rows = list(range(len(lengths)))
    padded, packed = list(micro_batches(rows, lengths, tokens)), list(micro_batches(rows, lengths, tokens, packed=True))
    assert len(packed) <= len(padded)
    sizes = sorted(sum(lengths[r] for r in some) for some in packed)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > tokens

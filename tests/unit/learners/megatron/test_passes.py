"""Rows end to end in one: every prediction comes back to where it belongs, whatever it was laid out beside."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roll_core.learners.batching import row_lengths
from roll_core.learners.megatron.learner import missing_package
from tests.unit.learners.sharing import make_batch

pytestmark = pytest.mark.skipif(bool(missing_package()), reason=missing_package() or "-")
torch.set_num_threads(1)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True), st.integers(1, 4))
def test_packed_and_padded_rows_choose_the_same_tokens_in_the_same_places(
    seed: int, rows: list[int], multiple: int
) -> None:
    from roll_core.learners.megatron.passes import lay_out

    batch = make_batch(seed)
    g = torch.Generator().manual_seed(seed)
    batch.mask_BT *= torch.rand(batch.mask_BT.shape, generator=g) > 0.3
    lengths = row_lengths(batch.mask_BT)
    rows = sorted((r for r in rows if lengths[r] > 1), key=lambda r: -lengths[r])
    if not rows:
        return
    part = (rows, slice(0, lengths[rows[0]]))
    for packed in (False, True):
        laid = lay_out(batch, part, lengths, packed=packed, multiple=multiple)
        assert laid.tokens_BT.shape[1] % multiple == 0
        inputs = laid.tokens_BT.flatten()[laid.chosen_N]
        # What a position reads and what it predicts stand side by side in the batch.
        found = laid.scored(inputs.float() + 1, laid.target_N.float() + 1)
        expected = batch.mask_BT[part].clone()
        expected[:, 0] = 0
        assert torch.equal(found.entropy_BT, (batch.tokens_BT[part] + 1) * expected)
        assert torch.equal(found.logprobs_BT[:, 1:], ((batch.tokens_BT[part] + 1)[:, :-1]) * expected[:, 1:])


def test_packed_rows_are_described_end_to_end_and_what_fills_up_is_a_sequence_of_its_own() -> None:
    from roll_core.learners.megatron.passes import lay_out

    batch = make_batch()
    lengths = row_lengths(batch.mask_BT)
    laid = lay_out(batch, ([0, 3, 6], slice(0, lengths[0])), lengths, packed=True, multiple=4)
    assert laid.packing is not None
    sizes = [lengths[row] - 1 for row in (0, 3, 6)]
    extra = -sum(sizes) % 4
    assert extra > 0
    assert laid.packing.cu_seqlens_q.diff().tolist() == [*sizes, extra]
    assert laid.packing.max_seqlen_q == max(sizes)
    assert torch.equal(laid.tokens_BT[0, : sizes[0]], batch.tokens_BT[0, : sizes[0]])
    assert torch.equal(laid.tokens_BT[0, sizes[0] : sizes[0] + sizes[1]], batch.tokens_BT[3, : sizes[1]])


def test_a_pass_beside_those_of_others_has_one_position() -> None:
    from roll_core.learners.megatron.passes import lay_out

    batch = make_batch()
    for packed in (False, True):
        laid = lay_out(batch, None, row_lengths(batch.mask_BT), packed=packed, multiple=2)
        assert laid.tokens_BT.shape == (1, 2)
        assert laid.chosen_N.tolist() == [0]

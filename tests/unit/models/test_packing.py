"""Equal prefixes are computed once, and nobody can tell by logits or gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roll_core.models import CausalLM, ModelConfig
from roll_core.models.lora import add_lora
from roll_core.models.packing import Packing

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab=40, hidden=16, layers=3, heads=4, kv_heads=2, head_dim=8, intermediate=24, max_context=64)


def group(rows: int, prompt: int, answers: list[int]) -> tuple[Tensor, Tensor]:
    """``rows`` rows for each of two prompts, padded on the right, and the positions that predict the answers."""
    generator = torch.Generator().manual_seed(0)
    width = prompt + max(answers)
    tokens_BT = torch.zeros(2 * rows, width, dtype=torch.int64)
    chosen_BT = torch.zeros(2 * rows, width, dtype=torch.bool)
    for number in range(2):
        opening = torch.randint(0, 40, (prompt,), generator=generator)
        for row in range(rows):
            size = answers[row % len(answers)]
            answer = torch.randint(0, 40, (size,), generator=generator)
            at = number * rows + row
            tokens_BT[at, : prompt + size] = torch.cat((opening, answer))
            chosen_BT[at, prompt - 1 : prompt + size - 1] = True
    return tokens_BT, chosen_BT.flatten().nonzero().squeeze(1)


def gradients(model: CausalLM) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["plain", "bias", "recomputed", "adapters"])
def test_a_packed_batch_says_and_learns_what_its_rows_do_one_by_one(kind: str) -> None:
    model = CausalLM(replace(CONFIG, qkv_bias=kind == "bias", qk_norm=kind != "bias"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    if kind == "adapters":
        add_lora(model, 4, 8.0)
    for block in model.model.layers:
        block.recompute = kind == "recomputed"  # type: ignore[assignment]
    tokens_BT, chosen_N = group(4, 12, [5, 2, 7])
    weight_ND = torch.randn(len(chosen_N), CONFIG.hidden, generator=torch.Generator().manual_seed(2))
    packing = Packing.of(tokens_BT, chosen_N)
    assert packing is not None
    # Two openings of 12, and of each answer all but the last token, which nothing is asked after.
    assert len(packing.own_U) == 2 * (12 + 4 + 1 + 6 + 4)

    packed_ND = model.hidden(tokens_BT, chosen_N)
    (packed_ND * weight_ND).sum().backward()  # type: ignore[no-untyped-call]
    with_packing = gradients(model)
    width, alone = tokens_BT.shape[1], []
    for row in range(len(tokens_BT)):
        chosen_n = chosen_N[chosen_N // width == row] - row * width
        alone.append(model.hidden(tokens_BT[row : row + 1], chosen_n))
    (torch.cat(alone) * weight_ND).sum().backward()  # type: ignore[no-untyped-call]

    assert (packed_ND - torch.cat(alone)).abs().max() < 1e-5
    for name, expected in gradients(model).items():
        assert (with_packing[name] - expected).abs().max() < 1e-4 * (1 + expected.abs().max()), name


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=2, max_size=7),
    st.lists(st.integers(0, 5), min_size=7, max_size=7),
)
def test_each_prefix_is_computed_once_and_stands_for_all_that_begin_so(rows: list[list[int]], last: list[int]) -> None:
    tokens_BT = torch.tensor(rows)
    packing = Packing.of(tokens_BT, torch.tensor([6 * b + last[b] for b in range(len(rows))]))
    prefixes = {tuple(row[: t + 1]) for row, end in zip(rows, last, strict=False) for t in range(end + 1)}
    if packing is None:
        assert len(prefixes) > 0.85 * 6 * len(rows)
        return
    computed = [tuple(rows[i // 6][: i % 6 + 1]) for i in packing.own_U.tolist()]
    assert len(computed) == len(set(computed))
    assert set(computed) == prefixes
    for b, row in enumerate(rows):
        for t in range(last[b] + 1):
            assert computed[int(packing.place_M[6 * b + t])] == tuple(row[: t + 1])


def test_nothing_is_packed_where_nobody_says_what_is_asked_for_or_nothing_is_alike() -> None:
    tokens_BT, chosen_N = group(4, 12, [5])
    assert Packing.of(tokens_BT, None) is None
    assert Packing.of(tokens_BT[:1], chosen_N[chosen_N < tokens_BT.shape[1]]) is None
    different_BT = torch.arange(4)[:, None] * torch.ones(1, 6, dtype=torch.int64)
    assert Packing.of(different_BT, torch.arange(24)) is None

"""The pure parts of the embedded engine: drawing tokens, and who holds which slot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from roll_core.engines.sampling import sample, uniforms
from roll_core.engines.slots import SlotTable, common_prefix

torch.set_num_threads(1)


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    n = 20_000
    u = uniforms([3] * n, range(n))
    tokens, logprobs = sample(probs.log().expand(n, -1), [1.0] * n, [1.0] * n, u)
    counts = torch.bincount(tokens, minlength=5) / n
    assert (counts - probs).abs().max() < 0.015
    assert counts[1] == 0
    assert torch.allclose(logprobs, probs.log()[tokens], atol=1e-6)


def test_the_nucleus_is_renormalised_and_nothing_outside_is_drawn() -> None:
    probs = torch.tensor([0.05, 0.5, 0.15, 0.3])
    n = 5_000
    tokens, logprobs = sample(probs.log().expand(n, -1), [1.0] * n, [0.7] * n, uniforms([1] * n, range(n)))
    assert set(tokens.tolist()) == {1, 3}
    expected = torch.where(tokens == 1, 0.5 / 0.8, 0.3 / 0.8).log()
    assert torch.allclose(logprobs, expected, atol=1e-6)
    tokens, logprobs = sample(probs.log().expand(2, -1), [1.0] * 2, [1e-9, 1.0], np.array([0.99, 0.99]))
    assert tokens.tolist()[0] == 1
    assert logprobs[0] == 0


def test_rows_of_different_settings_share_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 50, generator=generator).expand(4, -1)
    temperature, top_p, u = [0.0, 1.0, 0.5, 2.0], [1.0, 0.9, 1.0, 0.5], uniforms([1, 2, 3, 4], [0] * 4)
    together = sample(logits, temperature, top_p, u)
    for row in range(4):
        alone = sample(logits[:1], temperature[row : row + 1], top_p[row : row + 1], u[row : row + 1])
        assert together[0][row] == alone[0][0]
        assert torch.allclose(together[1][row], alone[1][0], atol=1e-6)


@given(st.floats(0, 1, exclude_max=True), st.lists(st.sampled_from([0.0, 1e-30, 0.2, 1.0]), min_size=1, max_size=9))
def test_an_impossible_token_is_never_drawn(u: float, probs: list[float]) -> None:
    if sum(probs) == 0:
        probs = [*probs, 1.0]
    logits = torch.tensor([probs]).log()
    token, logprob = sample(logits, [1.0], [1.0], np.array([u]))
    assert probs[int(token)] > 0
    assert torch.isfinite(logprob).all()


@given(st.integers(-(2**70), 2**70), st.integers(0, 10**6))
def test_uniforms_depend_on_seed_and_index_alone(seed: int, index: int) -> None:
    value = uniforms([seed], [index])[0]
    assert 0 <= value < 1
    assert uniforms([5, seed, 6], [1, index, 2])[1] == value


def test_uniforms_of_neighbouring_seeds_and_indices_are_independent() -> None:
    table = np.array([uniforms([seed] * 200, range(200)) for seed in range(200)])
    assert abs(table.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.03


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_no_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="slots=0"):
        SlotTable(0)


class Slots(RuleBasedStateMachine):
    """Any order of requests, ends, releases and weight updates."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(3)
        self.running: dict[int, list[int]] = {}

    @rule(session=st.sampled_from(["", "a", "b", "c", "d"]), ids=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def acquire(self, session: str, ids: list[int]) -> None:
        place = self.table.acquire(session, ids)
        if place is None:
            assert len(self.running) == 3
            return
        slot, reused = place
        assert slot not in self.running
        assert 0 <= reused < len(ids)
        self.running[slot] = ids

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if self.running:
            slot = data.draw(st.sampled_from(sorted(self.running)))
            self.table.finish(slot, self.running.pop(slot))

    @rule(session=st.sampled_from(["a", "b", "c", "d"]))
    def release(self, session: str) -> None:
        self.table.release(session)
        assert session not in self.table._idle

    @rule()
    def invalidate(self) -> None:
        self.table.invalidate()
        assert not any(self.table._ids[s] for s in self.table._idle.values())

    @invariant()
    def every_slot_is_in_exactly_one_state(self) -> None:
        states = [*self.table._free, *self.table._idle.values(), *self.table._busy]
        assert sorted(states) == [0, 1, 2]
        assert self.table.busy == len(self.running)
        named = [s for s in self.table._busy.values() if s]
        assert len(named) == len(set(named))
        assert not set(named) & set(self.table._idle)


TestSlots = Slots.TestCase

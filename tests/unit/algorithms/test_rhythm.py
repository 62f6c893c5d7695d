"""Attention rhythm: the paper's formulas on a map that can be worked out by hand, and what must hold on any."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from roll_core.algorithms.credit import Credit, Evidence
from roll_core.algorithms.rhythm import (
    Coupling,
    RhythmSettings,
    coupling,
    fai_of,
    head_sets,
    head_span,
    marks,
    masked_median,
    rhythm_credit,
    rhythm_gamma,
    share_count,
    top_share,
    waad_change,
    waad_of,
)

torch.set_num_threads(1)
STRATEGIES = ("local_chunk", "global_anchor", "coupled", "random", "entropy", "bottom")


def toy():
    """N = 8, prompt 2: the local head halves its attention per token back, the global one looks at token 3."""
    position = torch.arange(8, dtype=torch.float64)
    distance = position[:, None] - position
    local = torch.where(distance >= 0, 2.0**-distance, 0.0)
    wide = (distance >= 0).double()
    wide[4:, 3] = 4.0
    mask = (position >= 2).double()
    return local / local.sum(1, keepdim=True), wide / wide.sum(1, keepdim=True), mask


def test_the_toy_map_has_the_span_waad_and_fai_worked_out_by_hand():
    local, wide, mask = toy()
    assert_close(head_span(local[None], mask), torch.tensor([0.826957], dtype=torch.float64), atol=1e-6, rtol=0)
    waad = waad_of(local, mask, window=3)
    expected = [0.571429, 0.733333, 0.806452, 0.841270, 0.858268, 0.866667]
    assert_close(waad[2:], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    change = waad_change(waad[None], mask[None])[0]
    expected = [0.161905, 0.073118, 0.034818, 0.016998, 0.008399, 0.0]
    assert_close(change[2:], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    expected = [0.146528, 0.427020, 0.100673, 0.095455, 0.090909, 0.0]
    assert_close(fai_of(wide, mask, (1, 4))[2:], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert waad[:2].tolist() == [0, 0]
    assert change[:2].tolist() == [0, 0]


def test_the_toy_response_is_credited_as_each_strategy_says():
    local, wide, mask = toy()
    found = Evidence(
        mask[None],
        entropy_BT=torch.arange(8.0)[None],
        waad_BT=waad_of(local, mask, 3)[None],
        fai_BT=fai_of(wide, mask, (1, 4))[None],
    )

    def gamma(strategy, **more):
        return rhythm_gamma(RhythmSettings(strategy=strategy, **more), found)[0, 2:].tolist()

    # 40 % of six tokens is 2.4: two.
    assert gamma("local_chunk") == [1.5, 1.5, 1, 1, 1, 1]
    assert gamma("global_anchor") == [1.5, 1.5, 1, 1, 1, 1]
    assert gamma("entropy") == [1, 1, 1, 1, 1.5, 1.5]
    assert gamma("bottom") == [1, 1, 1, 1, 1.5, 1.5]
    # Token 3's WAAD lies below the median, and token 2, before it, has the greatest jump: it introduces the anchor.
    assert gamma("coupled") == pytest.approx([1 + 0.5 + 0.2, 1 + 0.3, 1, 1, 1, 1])
    assert gamma("coupled", share_back=0.0) == pytest.approx([1.5, 1.5, 1, 1, 1, 1])


def test_the_articles_example_an_anchor_gets_thirty_percent_and_its_preplan_token_twenty():
    # Token 1 jumps, token 3 is the anchor and looks nowhere; the others are neither.
    waad = torch.tensor([[0.0, 0.0, 9.0, 0.1, 5.0, 5.1, 5.2, 5.3, 5.4, 5.5]])
    fai = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[0.0, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    gamma = rhythm_gamma(RhythmSettings(top=0.1), Evidence(mask, waad_BT=waad, fai_BT=fai))
    assert gamma[0].tolist() == pytest.approx([1, 1.2, 1, 1.3, 1, 1, 1, 1, 1, 1])


def test_an_anchor_at_the_start_of_a_turn_is_not_dominated_by_what_the_environment_said():
    waad = torch.tensor([[0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.1, 5.0]])
    fai = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    mask = torch.tensor([[0.0, 1, 0, 0, 0, 0, 1, 1]])
    found = marks(waad, fai, mask, RhythmSettings(top=0.1))
    assert found.anchor_BT[0].tolist() == [False] * 6 + [True, False]
    assert not found.dominated_BT.any()
    assert not found.preplan_BT.any()


def test_of_equal_jumps_the_earliest_introduces():
    waad = torch.tensor([[2.0, 0.0, 2.0, 0.0, 3.0, 3.0]])
    fai = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]])
    found = marks(waad, fai, torch.ones(1, 6), RhythmSettings(top=0.2))
    assert found.change_BT[0].tolist() == [2, 2, 2, 3, 0, 0]
    assert found.dominated_BT[0].tolist() == [False] * 6, "no jump before it is among the greatest"
    found = marks(waad, fai, torch.ones(1, 6), RhythmSettings(top=0.5))
    assert found.preplan_BT[0].tolist() == [True, False, False, False, False, False]


def test_head_sets_take_the_shortest_and_the_longest_spans():
    span = torch.tensor([[3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 4.0, 5.0, 6.0, 1.0]])
    local, wide = head_sets(span, 0.3)
    assert local[0].nonzero().flatten().tolist() == [1, 2, 9]
    assert wide[0].nonzero().flatten().tolist() == [3, 4, 5]
    local, wide = head_sets(torch.tensor([[2.0, 1.0]]), 0.1)
    assert (local.tolist(), wide.tolist()) == ([[False, True]], [[True, False]]), "at least one"


def test_settings_that_cannot_be_meant_are_refused_by_name():
    for wrong, said in (
        ({"strategy": "middle"}, "strategy 'middle'"),
        ({"amplification": 0.5}, "amplification=0.5"),
        ({"horizon": (10, 5)}, "horizon"),
        ({"top": 1.2}, "top=1.2"),
        ({"head_share": 0.6}, "head_share"),
        ({"window": 0}, "window=0"),
    ):
        with pytest.raises(ValueError, match=said):
            RhythmSettings(**wrong)


@pytest.mark.parametrize("strategy", ["local_chunk", "global_anchor", "coupled", "entropy", "bottom"])
def test_a_strategy_without_its_evidence_names_what_is_missing(strategy):
    with pytest.raises(ValueError, match=f"'{strategy}' looks at (waad_BT|fai_BT|entropy_BT)"):
        rhythm_gamma(RhythmSettings(strategy=strategy), Evidence(torch.ones(1, 3)))


# --- on any input ----------------------------------------------------------------------------------------------------


@st.composite
def batches(draw):
    """Rows of several turns, of values with ties, padded on the right."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    seed = draw(st.integers(0, 2**31))
    random = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, length, generator=random) < draw(st.sampled_from([0.1, 0.6, 1.0]))).float()
    values = [
        torch.randint(0, 6, (batch, length), generator=random).float() / 8 * mask for _ in range(3)
    ]  # exact in binary
    advantages = torch.randn(batch, length, generator=random) * mask
    return mask, *values, advantages


def evidence(mask, waad, fai, entropy, seed=0):
    return Evidence(mask, entropy_BT=entropy, waad_BT=waad, fai_BT=fai, generator=torch.Generator().manual_seed(seed))


any_settings = st.builds(
    RhythmSettings,
    strategy=st.sampled_from(STRATEGIES),
    amplification=st.floats(1, 4),
    top=st.floats(0, 1),
    lookback=st.integers(1, 5),
    share_back=st.floats(0, 1),
)


@given(batches(), any_settings)
def test_credit_keeps_signs_and_magnitudes_and_gives_context_nothing(batch, chosen):
    mask, waad, fai, entropy, advantages = batch
    credit = Credit(advantages, mask.clone())
    after = rhythm_credit(chosen)(credit, evidence(mask, waad, fai, entropy))
    assert torch.equal(after.advantages_BT.sign(), advantages.sign())
    assert (after.advantages_BT.abs() >= advantages.abs()).all()
    assert torch.equal(after.entropy_weight_BT, credit.entropy_weight_BT)
    assert (after.advantages_BT[mask == 0] == 0).all()
    gamma = rhythm_gamma(chosen, evidence(mask, waad, fai, entropy))
    assert (gamma[mask == 0] == 1).all()
    most = 1 + (chosen.amplification - 1) * (1 + chosen.share_back)
    assert (gamma <= most + 1e-5).all()


@given(batches(), st.sampled_from(STRATEGIES), st.floats(0, 1))
def test_an_amplification_of_one_gives_back_the_plain_advantages(batch, strategy, top):
    mask, waad, fai, entropy, advantages = batch
    plain = RhythmSettings(strategy=strategy, amplification=1.0, top=top)
    after = rhythm_credit(plain)(Credit(advantages, mask), evidence(mask, waad, fai, entropy))
    assert torch.equal(after.advantages_BT, advantages)


@given(batches(), st.sampled_from(["local_chunk", "global_anchor", "random", "entropy", "bottom"]), st.floats(0, 1))
def test_the_amplified_share_of_every_response_is_exactly_q(batch, strategy, top):
    mask, waad, fai, entropy, _ = batch
    gamma = rhythm_gamma(RhythmSettings(strategy=strategy, top=top), evidence(mask, waad, fai, entropy))
    for row, own in zip(gamma, mask, strict=True):
        n = int(own.sum())
        assert int((row > 1).sum()) == share_count(top, n)
        assert abs(share_count(top, n) - top * n) <= 0.5 + 1e-6 or (n and share_count(top, n) == 1)


@given(batches(), any_settings.filter(lambda s: s.strategy != "random"), st.integers(0, 2**31), st.integers(0, 7))
def test_padding_other_rows_and_their_order_change_nothing(batch, chosen, seed, padding):
    mask, waad, fai, entropy, _ = batch
    gamma = rhythm_gamma(chosen, evidence(mask, waad, fai, entropy))
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    widened = [torch.nn.functional.pad(x[order], (0, padding)) for x in (mask, waad, fai, entropy)]
    again = rhythm_gamma(chosen, evidence(*widened))
    assert torch.equal(again[:, : mask.shape[1]], gamma[order])
    alone = rhythm_gamma(chosen, evidence(*(x[:1] for x in (mask, waad, fai, entropy))))
    assert torch.equal(alone, gamma[:1])


def highest(score, share):
    return set(sorted(score, key=lambda t: (-score[t], t))[: share_count(share, len(score))])


@given(batches(), any_settings)
def test_coupled_marks_are_what_their_definition_says_token_by_token(batch, chosen):
    """The formula of the paper, read once more, one anchor at a time."""
    mask, waad, fai, _, _ = batch
    found = marks(waad, fai, mask, chosen)
    for b in range(len(mask)):
        own = [t for t in range(mask.shape[1]) if mask[b, t]]
        delta = {t: abs(float(waad[b, t]) - float(waad[b, t + 1])) if t + 1 in own else 0.0 for t in own}

        glob = highest({t: float(fai[b, t]) for t in own}, chosen.top)
        jumps = highest(delta, chosen.top)
        threshold = min((delta[t] for t in jumps), default=math.inf)
        median = float(torch.tensor([float(waad[b, t]) for t in own], dtype=torch.float64).quantile(0.5)) if own else 0
        dominated, preplan = set(), set()
        for t in glob:
            window = [u for u in range(t - chosen.lookback, t) if u in own]
            if window and float(waad[b, t]) <= median and max(delta[u] for u in window) >= threshold:
                dominated.add(t)
                preplan.add(min(u for u in window if delta[u] >= max(delta[v] for v in window)))
        assert set(found.anchor_BT[b].nonzero().flatten().tolist()) == glob
        assert set(found.dominated_BT[b].nonzero().flatten().tolist()) == dominated
        assert set(found.preplan_BT[b].nonzero().flatten().tolist()) == preplan


def test_random_credit_is_the_generators_and_nothing_else():
    mask = torch.ones(3, 40)
    chosen = RhythmSettings(strategy="random")

    def drawn(seed):
        return rhythm_gamma(chosen, Evidence(mask, generator=torch.Generator().manual_seed(seed)))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_ties_go_to_the_earlier_token_and_the_median_of_four_is_between():
    mask = torch.tensor([[0.0, 1, 1, 1, 1]])
    assert top_share(torch.ones(1, 5), mask, 0.5)[0].tolist() == [False, True, True, False, False]
    assert masked_median(torch.tensor([[9.0, 1, 2, 4, 8]]), mask).tolist() == [3.0]


def test_coupling_counts_peaks_that_follow_and_what_chance_would_give():
    waad = torch.tensor([[0.0, 5.0, *[0.0] * 9]])
    fai = torch.tensor([[0.0, 0.0, 0.0, 7.0, *[0.0] * 7]])
    mask = torch.tensor([[0.0, *[1.0] * 10]])
    entropy = torch.tensor([[0.0, 2.0, *[0.5] * 9]])
    found = coupling(waad, fai, mask, 3, entropy)
    assert (found.tokens, found.anchors, found.followed) == (10, 1, 1)
    assert found.expected == pytest.approx(0.4), "four of ten tokens are within reach of the peak"
    assert found.following_gain == pytest.approx(1.5)
    assert found.entropy_gain == pytest.approx(2.0 / 0.65 - 1)
    late = coupling(waad, fai.roll(2, 1), mask, 3)
    assert late.followed == 0
    assert (found + late).following_gain == pytest.approx(1 / 0.8 - 1)
    assert late.entropy_gain is None
    assert Coupling().following_gain is None


def test_shuffled_coupling_is_the_mean_over_many_shuffles():
    random = torch.Generator().manual_seed(3)
    waad, fai = torch.rand(1, 60, generator=random), torch.rand(1, 60, generator=random)
    mask = torch.ones(1, 60)
    expected = coupling(waad, fai, mask, 3).expected
    drawn = [coupling(waad, fai[:, torch.randperm(60, generator=random)], mask, 3).followed for _ in range(600)]
    assert sum(drawn) / len(drawn) == pytest.approx(expected, rel=0.08)

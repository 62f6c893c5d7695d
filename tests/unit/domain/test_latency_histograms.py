"""Histograms of latencies: quantiles are near those of the values themselves, and counts add up."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.latency import LEAST_S, MOST_S, bucket_of, quantile, seconds_of

SECONDS = st.floats(LEAST_S, MOST_S)


@given(SECONDS)
def test_a_bucket_says_what_fell_into_it_within_five_per_cent(seconds: float) -> None:
    assert abs(seconds_of(bucket_of(seconds)) / seconds - 1) < 0.045


@given(st.lists(SECONDS, min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_that_of_the_values_within_five_per_cent(values: list[float], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert abs(quantile(Counter(map(bucket_of, values)), share) / exact - 1) < 0.045


@given(st.lists(SECONDS, min_size=1), st.lists(SECONDS), st.floats(0, 1))
def test_counts_of_two_sources_may_be_added(a: list[float], b: list[float], share: float) -> None:
    apart = Counter(map(bucket_of, a)) + Counter(map(bucket_of, b))
    assert quantile(apart, share) == quantile(Counter(map(bucket_of, a + b)), share)


def test_what_is_out_of_range_is_counted_at_its_end() -> None:
    assert bucket_of(-1.0) == bucket_of(0.0) == bucket_of(LEAST_S) == 0
    assert bucket_of(math.inf) == bucket_of(MOST_S)


@pytest.mark.parametrize("bad", [lambda: bucket_of(math.nan), lambda: quantile({}, 0.5), lambda: quantile({1: 1}, 2)])
def test_what_says_nothing_is_refused(bad) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="expected"):
        bad()

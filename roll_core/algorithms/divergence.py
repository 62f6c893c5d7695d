"""Estimates of KL(π_θ ‖ π_ref) from single samples, and entropy.

Invariants: k1 is unbiased, k2 low in variance, k3 both and never negative (J. Schulman, "Approximating KL divergence",
2020). Values are per token; reducing is the caller's business.

Shape legend: … any leading shape, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """With d = log π_θ − log π_ref of the sampled token: k1 = d, k2 = d²/2, k3 = e^{−d} − 1 + d. Elementwise."""
    difference = logprobs - reference_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        bounded = difference.clamp(-20.0, 20.0)  # as far as ratios are told apart, and finite in float32
        return (-bounded).exp() - 1.0 + bounded
    raise ValueError(f"unknown KL estimator {estimator!r}; expected k1, k2 or k3")


def entropy(logprobs_V: Tensor) -> Tensor:
    """−Σ_v p log p of normalised log-probs (…V) → (…), in nats. A probability of 0 contributes 0."""
    return -(logprobs_V.exp() * logprobs_V.clamp(min=-1e4)).sum(-1)

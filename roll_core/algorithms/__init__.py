"""The mathematics of training: advantages, policy losses, divergences. Pure functions of tensors."""

from roll_core.algorithms.advantages import ADVANTAGES, gae, spread
from roll_core.algorithms.divergence import entropy, kl_estimate
from roll_core.algorithms.masked import Aggregation, aggregate, masked_mean, masked_sum, masked_whiten, token_weights
from roll_core.algorithms.policy_losses import POLICY_LOSSES, LossInputs, LossOptions, PolicyLoss, TokenLoss

__all__ = [
    "ADVANTAGES",
    "POLICY_LOSSES",
    "Aggregation",
    "LossInputs",
    "LossOptions",
    "PolicyLoss",
    "TokenLoss",
    "aggregate",
    "entropy",
    "gae",
    "kl_estimate",
    "masked_mean",
    "masked_sum",
    "masked_whiten",
    "spread",
    "token_weights",
]

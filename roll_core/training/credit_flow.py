"""From what was earned to what each token is taught: rewards → advantages → the recipe's chain of credit transforms.

Invariants: a function of recipe, groups and evidence, so that a replay comes to the same; advantages are 0 outside the
mask; nothing here changes a policy or a critic.

Shape legend: M critics, B trajectories, T tokens, K turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from roll_core.algorithms import ADVANTAGES, kl_estimate, masked_whiten, spread
from roll_core.algorithms.advantages import gae, gigpo_steps, of_turns, on_tokens
from roll_core.algorithms.credit import Credit, CreditTransform, Evidence, transformed
from roll_core.algorithms.critics import advantage_mask, ensemble, entropy_filter, with_bootstrap
from roll_core.algorithms.rhythm import RhythmSettings, rhythm_credit
from roll_core.config import Recipe
from roll_core.config.algorithm import Algorithm
from roll_core.learners.base import Estimate, Rhythm, Scores
from roll_core.training.batches import anchors, invalid_tokens, tasks
from roll_core.types import Group, TrainBatch


def needs_scores(recipe: Recipe) -> bool:
    """Whether a step begins with a pass of the policy over its batch, before any update."""
    algorithm = recipe.algorithm
    by_entropy = "rhythm" in algorithm.credit and recipe.rhythm.strategy == "entropy"
    return by_entropy or (algorithm.kl_coef > 0 and algorithm.kl_in == "reward")


def charge_divergence(algorithm: Algorithm, batch: TrainBatch, scores: Scores) -> dict[str, float]:
    """Take β·KL(π‖π_ref) of every token from its reward, in place (InstructGPT, arXiv 2203.02155 eq. 2; REINFORCE++,
    arXiv 2501.03262). π is the policy at the start of the update."""
    if scores.reference_logprobs_BT is None or batch.rewards_BT is None:
        raise ValueError("algorithm.kl_in is 'reward', but the learner has no reference policy to measure from")
    kl_BT = kl_estimate(scores.logprobs_BT, scores.reference_logprobs_BT, algorithm.kl_estimator) * batch.mask_BT
    batch.rewards_BT = batch.rewards_BT - algorithm.kl_coef * kl_BT
    batch.rewards_B = batch.rewards_B - algorithm.kl_coef * kl_BT.sum(1)
    return {"learner/kl": (kl_BT.sum() / batch.mask_BT.sum().clamp(min=1)).item()}


def give_credit(
    recipe: Recipe,
    batch: TrainBatch,
    groups: Sequence[Group],
    *,
    version: int,
    estimate: Estimate | None = None,
    scores: Scores | None = None,
    rhythm: Rhythm | None = None,
) -> None:
    """Fill ``batch.advantages_BT`` and ``batch.entropy_weight_BT``."""
    mask_BT = batch.mask_BT
    evidence = Evidence(
        mask_BT,
        entropy_BT=scores.entropy_BT if scores else None,
        value_std_BT=ensemble(estimate.values_MBT).std_BT if estimate else None,
        waad_BT=rhythm.waad_BT if rhythm else None,
        fai_BT=rhythm.fai_BT if rhythm else None,
        generator=credit_generator(recipe, version),
    )
    credit = Credit(advantages(recipe.algorithm, batch, groups, estimate), mask_BT.clone())
    credit = transformed(credit, evidence, chain(recipe))
    batch.advantages_BT, batch.entropy_weight_BT = credit.advantages_BT, credit.entropy_weight_BT


def credit_generator(recipe: Recipe, version: int) -> torch.Generator:
    """What transforms of the step at ``version`` draw from: the same in a replay."""
    return torch.Generator().manual_seed(recipe.training.seed * 1_000_003 + version)


def chain(recipe: Recipe) -> list[CreditTransform]:
    """The transforms that ``algorithm.credit`` names, in its order."""
    made: dict[str, Callable[[], CreditTransform]] = {
        "rhythm": lambda: rhythm_credit(rhythm_settings(recipe)),
        "advantage_mask": lambda: advantage_mask(recipe.critic.mask_low),
        "entropy_filter": lambda: entropy_filter(recipe.critic.filter_high),
    }
    return [made[name]() for name in recipe.algorithm.credit]


def rhythm_settings(recipe: Recipe) -> RhythmSettings:
    """The section ``rhythm`` as the algorithm takes it."""
    rhythm = recipe.rhythm
    return RhythmSettings(
        strategy=rhythm.strategy,
        amplification=rhythm.amplification,
        top=rhythm.top,
        window=rhythm.window,
        horizon=rhythm.horizon,
        head_share=rhythm.head_share,
        layers=rhythm.layers,
        lookback=rhythm.lookback,
        share_back=rhythm.share_back,
    )


def advantages(algorithm: Algorithm, batch: TrainBatch, groups: Sequence[Group], estimate: Estimate | None) -> Tensor:
    """advantages_BT of the recipe's kind, before any credit transform.

    ``negative_weight`` scales those below 0. An agent's failures are its longest episodes and most of what they contain
    was no mistake, so at full weight they flatten the policy faster than the few successes shape it. The same asymmetry
    as the weights of weighted TOPR (arXiv 2510.11345), applied to the advantage so that it goes with every loss.
    ``invalid_action_penalty`` is taken from the advantage of the tokens of turns without a valid action, and its mean
    over the batch is given back to all: without that baseline it would push down whatever such turns have in common
    with the others, "go to" as such.
    """
    raw_BT = _raw(algorithm, batch, groups, estimate)
    if algorithm.normalise != "none":
        raw_BT = _normalised(algorithm, raw_BT, batch.mask_BT, tasks(groups))
    raw_BT = torch.where(raw_BT < 0, raw_BT * algorithm.negative_weight, raw_BT)
    if not algorithm.invalid_action_penalty:
        return raw_BT
    invalid_BT = invalid_tokens(groups, batch.mask_BT.shape[1])
    mean_invalid = invalid_BT.sum() / batch.mask_BT.sum().clamp(min=1)
    return raw_BT - algorithm.invalid_action_penalty * (invalid_BT - mean_invalid * batch.mask_BT)


def _raw(algorithm: Algorithm, batch: TrainBatch, groups: Sequence[Group], estimate: Estimate | None) -> Tensor:
    if algorithm.advantage == "gae":
        return _gae(algorithm, batch, estimate)
    if algorithm.advantage == "gigpo":
        return _gigpo(algorithm, batch, anchors(groups))
    return spread(ADVANTAGES[algorithm.advantage](batch.rewards_B, batch.group_B), batch.mask_BT)


def _gae(algorithm: Algorithm, batch: TrainBatch, estimate: Estimate | None) -> Tensor:
    """On the critics' mean. A truncated row bootstraps from the state it stopped in, a terminated one from nothing."""
    if estimate is None or batch.rewards_BT is None or batch.turn_BT is None:
        raise ValueError("algorithm.advantage is 'gae', but no critic takes part: set critic.count to at least 1")
    values_BT, mask_BT = ensemble(estimate.values_MBT).mean_BT, batch.mask_BT
    final_B = estimate.final_MB.mean(0)
    rewards_BT = with_bootstrap(batch.rewards_BT, mask_BT, batch.truncated_B, final_B, algorithm.gamma)
    if algorithm.gae_level == "token":
        return gae(rewards_BT, values_BT, mask_BT, algorithm.gamma, algorithm.lam)[0]
    values_BK, mask_BK = of_turns(values_BT, batch.turn_BT, "first")
    rewards_BK, _ = of_turns(rewards_BT, batch.turn_BT, "sum")
    return on_tokens(gae(rewards_BK, values_BK, mask_BK, algorithm.gamma, algorithm.lam)[0], batch.turn_BT)


def _gigpo(algorithm: Algorithm, batch: TrainBatch, anchor_BK: Tensor) -> Tensor:
    """Episode advantage + ω · step advantage, GiGPO, arXiv 2505.10978 eq. 8."""
    if batch.rewards_BT is None or batch.turn_BT is None:
        raise ValueError("algorithm.advantage is 'gigpo', but the batch does not say what was earned in which turn")
    episode_B = ADVANTAGES["grpo" if algorithm.gigpo_std else "dr_grpo"](batch.rewards_B, batch.group_B)
    rewards_BK, mask_BK = of_turns(batch.rewards_BT, batch.turn_BT, "sum", turns=anchor_BK.shape[1])
    step_BK = gigpo_steps(rewards_BK, mask_BK, anchor_BK, gamma=algorithm.gamma, std=algorithm.gigpo_std)
    return spread(episode_B, batch.mask_BT) + algorithm.gigpo_weight * on_tokens(step_BK, batch.turn_BT)


def _normalised(algorithm: Algorithm, x_BT: Tensor, mask_BT: Tensor, task_B: Tensor) -> Tensor:
    """Whitened over the response tokens of the batch, or of each task's rows. Equal ones become 0."""
    if algorithm.normalise == "batch":
        return _whitened(x_BT, mask_BT)
    result_BT = torch.zeros_like(x_BT)
    for task in torch.unique(task_B).tolist():
        rows = task_B == task
        result_BT[rows] = _whitened(x_BT[rows], mask_BT[rows])
    return result_BT


def _whitened(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """In float64, for the reason given in :mod:`roll_core.algorithms.advantages`."""
    return masked_whiten(x_BT.double(), mask_BT).to(x_BT.dtype)

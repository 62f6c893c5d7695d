"""What a learner step is, for the loop and for a replay: both train by this function, or a replay proves nothing.

Invariants: depends on nothing but its arguments; the learner's version rises by exactly one, also in a step in which
only the critics learn; the order is that of AsyPPO (arXiv 2510.01656): critics learn, then say what states are worth,
then the policy learns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from roll_core.algorithms.critics import disagreement_metrics
from roll_core.config import Recipe
from roll_core.errors import LearnerFailed
from roll_core.training.batches import make_batch
from roll_core.training.credit_flow import advantages, charge_divergence, give_credit, needs_scores
from roll_core.training.rhythm_record import rhythm_metrics
from roll_core.training.roles import Roles
from roll_core.types import Group


def update(recipe: Recipe, roles: Roles, groups: Sequence[Group], progress: float) -> dict[str, float]:
    """All updates on one batch; returns metrics. ``progress``: share of the run that is over. Raises LearnerFailed."""
    try:
        return _update(recipe, roles, groups, progress) | roles.restarts()
    except Exception as error:
        raise LearnerFailed(f"The learner's step at version {roles.version} raised {error!r}.") from error


def _update(recipe: Recipe, roles: Roles, groups: Sequence[Group], progress: float) -> dict[str, float]:
    learner, critics, actor_attn = roles.learner, roles.critics, roles.actor_attn
    batch = make_batch(groups)
    metrics: dict[str, float] = {}
    if roles.reference is not None:
        batch.reference_logprobs_BT = roles.reference.logprobs(batch)
    scores = learner.score(batch) if needs_scores(recipe) else None
    if scores is not None and roles.reference is not None:
        scores = replace(scores, reference_logprobs_BT=batch.reference_logprobs_BT)
    if scores is not None:
        batch.prox_logprobs_BT = scores.logprobs_BT
        if recipe.algorithm.kl_in == "reward" and recipe.algorithm.kl_coef:
            metrics |= charge_divergence(recipe.algorithm, batch, scores)
    estimate = None
    if critics is not None:
        metrics |= critics.train_step(batch)
        if learner.version < recipe.critic.warmup_steps:
            return metrics | learner.skip_step()
        estimate = critics.estimate(batch)
        if not recipe.critic.bootstrap:
            estimate = replace(estimate, final_MB=torch.zeros_like(estimate.final_MB))
        low, high = recipe.critic.mask_low, recipe.critic.filter_high
        metrics |= disagreement_metrics(estimate.values_MBT, batch.mask_BT, low, high)
    rhythm, began_s = None, time.perf_counter()
    if actor_attn is not None:
        batch.advantages_BT = advantages(recipe.algorithm, batch, groups, estimate)  # rows without any are spared
        rhythm = actor_attn.rhythm(batch)
        entropy_BT = scores.entropy_BT if scores else None
        metrics |= rhythm_metrics(recipe, batch, rhythm, entropy_BT, version=learner.version)
        metrics["rhythm/time_s"] = time.perf_counter() - began_s
    give_credit(recipe, batch, groups, version=learner.version, estimate=estimate, scores=scores, rhythm=rhythm)
    metrics |= learner.train_step(batch, progress=progress)
    if actor_attn is not None:
        actor_attn.load_weights(learner.weights())
    return metrics

"""The part of a recipe that says how credit is given and what is minimised."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from roll_core.config.section import Natural, Positive, Section, Share

CREDIT = ("rhythm", "advantage_mask", "entropy_filter")
"""Credit transforms that a recipe may name."""

# Spelled out, not imported: reading a recipe must not load torch. A test holds them against the algorithms' own.
Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant-length"]
KLEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["token_weight", "sequence_weight", "token_veto", "sequence_band"]


class Algorithm(Section):
    """Credit and loss. What is left at `null` is the loss's own default. `docs/algorithms.md` has the formulas."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "bnpo", "gae", "gigpo"] = "grpo"
    """`grpo`: (R − mean)/std in the group. `dr_grpo`: R − mean. `rloo`: R − mean of the others. `reinforce_pp`:
    whitened over the batch. `bnpo`: (R − mean) over the density of a Beta distribution fitted to the groups' success
    rates; rewards from 0 to 1. `gae`: from the critics' values (`critic.count` ≥ 1). `gigpo`: `grpo` plus the advantage
    of a turn over those of its group that began with the same observation."""
    normalise: Literal["none", "batch", "task"] = "none"
    """Whiten the advantages over the response tokens of the batch, or of each task's episodes."""
    gamma: Share = 1.0
    """Discount of `gae` (per token, or per turn) and of the step returns of `gigpo` (per turn; the paper has 0.95)."""
    lam: Share = 0.95
    """λ of `gae`."""
    gae_level: Literal["token", "turn"] = "token"
    """What is one step of `gae`: a token, or a turn, whose tokens then share its advantage."""
    gigpo_weight: Annotated[float, Field(ge=0)] = 1.0
    """ω: weight of the step advantage beside the episode's."""
    gigpo_std: bool = True
    """Divide both parts of `gigpo` by their standard deviations. `false`: only subtract means."""
    negative_weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor on advantages below 0. Less than 1 where failures are long episodes with few wrong actions in them."""
    invalid_action_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the advantage of the tokens of a turn whose action the environment did not accept; its mean over the
    batch is given back to all, so that it only moves credit from such turns to the others."""
    credit: tuple[str, ...] = ()
    """Transforms of the advantages, in this order: `rhythm` (settings in the section `rhythm`), `advantage_mask` and
    `entropy_filter` (from the disagreement of critics, settings in the section `critic`)."""
    filter_zero_variance: bool = True
    """Leave out groups whose rewards are all equal, and play others in their place."""

    loss: Literal[
        "ppo", "grpo", "dapo", "dr_grpo", "bnpo", "reinforce_pp", "rloo", "gspo", "decoupled_ppo", "tis", "cispo",
        "topr", "weighted_topr", "kimi",
    ] = "dapo"  # fmt: skip
    """Policy loss."""
    clip_low: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The ratio is clipped below at 1 − this."""
    clip_high: Annotated[float, Field(ge=0)] | None = None
    """The ratio is clipped above at 1 + this."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound c of the loss where the advantage is negative: at most c·|A| (3 is usual)."""
    cap: Annotated[float, Field(gt=0)] | None = None
    """Upper bound of an importance weight."""
    weight_positive: Annotated[float, Field(ge=0)] | None = None
    """w⁺ of `weighted_topr`."""
    weight_negative: Annotated[float, Field(ge=0)] | None = None
    """w⁻ of `weighted_topr`."""
    tau: Annotated[float, Field(ge=0)] | None = None
    """τ of `kimi`: how strongly the policy is held where the update began."""
    aggregation: Aggregation | None = None
    """How the tokens' losses become one number. `token-mean`: over all response tokens. `seq-mean-token-mean`: over
    each episode, then over episodes. `seq-mean-token-sum`: each episode's sum, mean over episodes. `constant-length`:
    that over `length`."""
    length: Annotated[int, Field(ge=1)] | None = None
    """Divisor of `constant-length`; `null`: the longest row of the batch, padding and context included."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the policy that reinforcement learning began with."""
    kl_estimator: KLEstimator = "k3"
    """With d = log π − log π_ref: `k1` d, `k2` d²/2, `k3` e^(−d) − 1 + d. In the loss `k2` has the gradient of the
    divergence; that of `k1` is 0 on average. In the reward `k1` is unbiased."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence counts: in the loss, or, token by token, in the reward before advantages are taken."""

    correction: tuple[Correction, ...] = ()
    """What is done about tokens that engine and learner see differently, on top of any loss; w = π_learner/π_engine at
    the start of the update. `token_weight`: times min(w, C). `sequence_weight`: times min(Π w, C) of the whole episode.
    `token_veto`: episodes with a token of w < `correction_veto` teach nothing. `sequence_band`: nor do those whose
    geometric mean of w is outside `correction_band`. At most one of the two weights."""
    correction_cap: Annotated[float, Field(gt=0)] = 2.0
    """C of the weights."""
    correction_veto: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """Lowest w that `token_veto` lets pass."""
    correction_band: tuple[float, float] = (0.99, 1.01)
    """Lowest and highest geometric mean of w that `sequence_band` lets pass."""

    mismatch_kl: Annotated[float, Field(gt=0)] = 0.01
    """Alarm when engine and learner differ by more than this on tokens of the same weights: KL (k3), nats a token."""
    mismatch_ess: Share = 0.5
    """Alarm when less than this share of a batch is left as effective sample size."""
    mismatch_patience: Positive = 3
    """Steps in a row until such an alarm is raised, and until it ends."""

    @field_validator("credit")
    @classmethod
    def _known_credit(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in CREDIT:
                raise ValueError(f"there is no credit transform {name!r}; expected any of {', '.join(CREDIT)}")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if {"token_weight", "sequence_weight"} <= set(self.correction):
            raise ValueError("correction names token_weight and sequence_weight: choose one importance weight")
        low, high = self.correction_band
        if not 0 <= low <= 1 <= high:
            raise ValueError(f"correction_band={list(self.correction_band)} must hold 1: a low end ≤ 1, a high end ≥ 1")
        if self.kl_in == "reward" and self.kl_coef and self.advantage == "bnpo":
            raise ValueError("advantage 'bnpo' needs rewards from 0 to 1, which kl_in 'reward' moves: use kl_in 'loss'")
        return self


class Critic(Section):
    """Value functions (AsyPPO, arXiv 2510.01656)."""

    count: Natural = 0
    """Critics: 0 none, 1 an ordinary one, 2 the two mini-critics of the paper."""
    source: Literal["new", "policy", "checkpoint"] = "new"
    """`new`: random weights and the sizes below. `policy`: a copy of the policy as reinforcement learning begins (the
    symmetric critic). `checkpoint`: loaded from `path`."""
    path: str = ""
    """`checkpoint` only: a Hugging Face checkpoint with the policy's tokenizer, directory or name on the Hub."""
    device: str = ""
    """`cpu`, `cuda`, `cuda:1`…; empty: `learner.device`."""
    hidden: Positive = 64
    """Width of the residual stream."""
    layers: Positive = 2
    """Number of blocks."""
    heads: Positive = 4
    """Query heads."""
    kv_heads: Positive = 2
    """Key and value heads; divides `heads`."""
    head_dim: Positive = 16
    """Width of a head; even."""
    intermediate: Positive = 192
    """Width of the feed-forward layer."""
    partition: bool = True
    """Each critic learns from its own share of every prompt's responses. `false`: each from all (naive ensemble)."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the critics (AdamW)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of the critics, on matrices only."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm to which a critic's gradient is clipped."""
    epochs: Positive = 1
    """Passes over a batch."""
    updates_per_batch: Positive = 4
    """Optimizer updates in one pass."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """The new value may leave the old one by this much before its loss stops counting; `null`: no limit."""
    targets: Literal["monte_carlo", "gae"] = "monte_carlo"
    """What critics learn to predict. `monte_carlo`: what was earned from a token on, discounted by `algorithm.gamma`.
    `gae`: that mixed with the critic's own later values by `algorithm.lam`, less noisy and less true."""
    bootstrap: bool = True
    """An episode that a limit cut off goes on being worth what its last state is worth; what ended by itself is worth
    nothing more. `false`: both end at nothing, as where the limit is part of the task."""
    warmup_steps: Natural = 10
    """Steps at the start in which only the critics learn."""
    mask_low: Share = 0.2
    """`advantage_mask`: share of tokens, those on which the critics agree most, whose advantage becomes 0."""
    filter_high: Share = 0.2
    """`entropy_filter`: share of tokens, those on which the critics agree least, without entropy bonus."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.source == "checkpoint" and not self.path:
            raise ValueError("critic.source is 'checkpoint', so critic.path must name one")
        if self.source == "new" and self.heads % self.kv_heads:
            raise ValueError(f"critic.heads={self.heads} is no multiple of critic.kv_heads={self.kv_heads}")
        if self.source == "new" and self.head_dim % 2:
            raise ValueError(f"critic.head_dim={self.head_dim} must be even: the rotary embedding turns pairs")
        return self


class Rhythm(Section):
    """Credit by attention rhythm (arXiv 2510.13554), used where `algorithm.credit` names `rhythm`."""

    strategy: Literal["local_chunk", "global_anchor", "coupled", "random", "entropy", "bottom"] = "coupled"
    """Which tokens count for more. `random`, `entropy` and `bottom` are the controls of the ablation."""
    amplification: Annotated[float, Field(ge=1)] = 1.5
    """γ_amp: the factor on their advantage, at least 1."""
    top: Share = 0.4
    """q: share of a response's tokens that are amplified."""
    window: Positive = 10
    """W of WAAD, tokens."""
    horizon: tuple[Positive, Positive] = (10, 100)
    """H of FAI: from and to how many tokens ahead."""
    head_share: Annotated[float, Field(gt=0, le=0.5)] = 0.3
    """Share of the heads that count as local (shortest span), and as global (longest)."""
    layers: Positive = 5
    """Layers, evenly spaced in the middle third, whose maps are looked at."""
    lookback: Positive = 3
    """k: tokens before an anchor among which its preplan token is looked for."""
    share_back: Share = 0.4
    """a: the part of a locally dominated anchor's bonus that its preplan token gets."""
    record: Natural = 1
    """Episodes per step whose rhythm is kept for `rock run rhythm` and the dashboard."""


def contradiction(algorithm: Algorithm, critic: Critic, rhythm: Rhythm, *, group_size: int) -> str | None:
    """What the sections on credit ask for and cannot have, or None."""
    credit = algorithm.credit
    if algorithm.advantage == "gae" and critic.count < 1:
        return "algorithm.advantage 'gae' needs values: set critic.count to at least 1"
    for name in ("advantage_mask", "entropy_filter"):
        if name in credit and critic.count < 2:
            return f"algorithm.credit {name!r} needs critics that can disagree: set critic.count to at least 2"
    if "entropy_filter" in credit and not algorithm.entropy_coef:
        return "algorithm.credit 'entropy_filter' filters the entropy bonus, and algorithm.entropy_coef is 0"
    if group_size < 2 and algorithm.advantage not in ("gae", "reinforce_pp"):
        return (
            f"rollout.group_size must be at least 2: algorithm.advantage {algorithm.advantage!r} is relative to the "
            "group; gae and reinforce_pp are not"
        )
    if group_size < 2 and algorithm.filter_zero_variance:
        return "rollout.group_size is 1, so algorithm.filter_zero_variance would leave out every group: set it to false"
    if "rhythm" in credit and rhythm.horizon[0] > rhythm.horizon[1]:
        return f"rhythm.horizon={list(rhythm.horizon)} must be a range: from a smaller to a greater number of tokens"
    return None

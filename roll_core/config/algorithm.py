"""The part of a recipe that says how credit is given and what is minimised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roll_core.config.section import Natural, Positive, Section, Share


class Algorithm(Section):
    """Credit and loss. What is left at `null` is the loss's own default."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp"] = "grpo"
    """`grpo`: (R − mean)/std in the group. `dr_grpo`: R − mean. `rloo`: R − mean of the others. `reinforce_pp`:
    whitened over the batch."""
    loss: Literal["ppo", "grpo", "dapo", "dr_grpo", "decoupled_ppo", "tis", "cispo", "topr"] = "dapo"
    """Policy loss; the docstrings of `roll_core/algorithms/policy_losses.py` say what each does."""
    clip_low: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The ratio is clipped below at 1 − this."""
    clip_high: Annotated[float, Field(ge=0)] | None = None
    """The ratio is clipped above at 1 + this."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound of the loss where the advantage is negative."""
    cap: Annotated[float, Field(gt=0)] | None = None
    """Upper bound of an importance weight."""
    aggregation: Literal["token-mean", "seq-mean-token-mean", "constant-length"] | None = None
    """How the tokens' losses become one number."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the policy that reinforcement learning began with."""
    negative_weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor on advantages below 0. Less than 1 where failures are long episodes with few wrong actions in them."""
    invalid_action_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the advantage of the tokens of a turn whose action the environment did not accept; its mean over the
    batch is given back to all, so that it only moves credit from such turns to the others."""
    credit: tuple[str, ...] = ()
    """Transforms of the advantages, in this order: `rhythm` (settings in the section `rhythm`), `advantage_mask` and
    `entropy_filter` (from the disagreement of critics, settings in the section `critic`)."""
    gamma: Share = 1.0
    """Discount of `gae`."""
    lam: Share = 0.95
    """λ of `gae`."""
    filter_zero_variance: bool = True
    """Leave out groups whose rewards are all equal, and play others in their place."""


class Critic(Section):
    """Value functions (AsyPPO, arXiv 2510.01656)."""

    count: Natural = 0
    """Critics: 0 none, 1 an ordinary one, 2 the two mini-critics of the paper."""
    source: Literal["new", "policy", "checkpoint"] = "new"
    """`new`: random weights and the sizes below. `policy`: a copy of the policy as reinforcement learning begins (the
    symmetric critic). `checkpoint`: loaded from `path`."""
    path: str = ""
    """`checkpoint` only: a Hugging Face checkpoint with the policy's vocabulary, directory or name on the Hub."""
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
    """Learning rate of the critics."""
    epochs: Positive = 1
    """Passes over a batch."""
    updates_per_batch: Positive = 4
    """Optimizer updates in one pass."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """The new value may leave the old one by this much before its loss stops counting; `null`: no limit."""
    warmup_steps: Natural = 10
    """Steps at the start in which only the critics learn."""
    mask_low: Share = 0.2
    """`advantage_mask`: share of tokens, those on which the critics agree most, whose advantage becomes 0."""
    filter_high: Share = 0.2
    """`entropy_filter`: share of tokens, those on which the critics agree least, without entropy bonus."""


class Rhythm(Section):
    """Credit by attention rhythm (arXiv 2510.13554), used where `algorithm.credit` names `rhythm`."""

    strategy: Literal["local_chunk", "global_anchor", "coupled", "random", "entropy", "bottom"] = "coupled"
    """Which tokens count for more. `random`, `entropy` and `bottom` are the controls of the ablation."""
    amplification: Annotated[float, Field(ge=0)] = 1.5
    """γ_amp: the factor on their advantage."""
    top: Share = 0.4
    """q: share of a response's tokens that are amplified."""
    window: Positive = 10
    """W of WAAD, tokens."""
    horizon: tuple[int, int] = (10, 100)
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

"""How a learner learns. A recipe embeds this model; unknown keys are errors."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from roll_core.algorithms import POLICY_LOSSES, Aggregation, LossOptions, PolicyLoss
from roll_core.algorithms.corrections import Correction, CorrectionSettings, corrected
from roll_core.algorithms.divergence import KLEstimator


class LearnerConfig(BaseModel):
    """Optimizer, loss and batching. Settings of the loss left at None are that loss's own defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon``: matrices inside the blocks by orthogonalised momentum, the rest by AdamW; learns in fewer steps."""
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    """Applied to matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    warmup_updates: int = Field(default=0, ge=0)
    """Optimizer updates over which the learning rate rises linearly."""

    lr_end: float = Field(default=1.0, ge=0, le=1)
    """Factor on the learning rate at the end of the run, approached linearly with its progress."""

    loss: str = "grpo"
    clip_low: float | None = Field(default=None, ge=0)
    clip_high: float | None = Field(default=None, ge=0)
    dual_clip: float | None = Field(default=None, gt=1)
    cap: float | None = Field(default=None, gt=0)
    length: int | None = Field(default=None, ge=1)
    """Divisor of constant-length aggregation."""
    weight_positive: float | None = Field(default=None, ge=0)
    weight_negative: float | None = Field(default=None, ge=0)
    tau: float | None = Field(default=None, ge=0)
    aggregation: Aggregation | None = None
    correction: tuple[Correction, ...] = ()
    """On top of the loss, for what engine and learner see differently."""
    correction_cap: float = Field(default=2.0, gt=0)
    correction_veto: float = Field(default=1e-4, ge=0, lt=1)
    correction_band: tuple[float, float] = (0.99, 1.01)
    entropy_coef: float = Field(default=0.0, ge=0)
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the reference policy (the one the learner was made with, unless given)."""
    reference_given: bool = False
    """The reference is elsewhere: its log-probs come with each batch."""
    kl_estimator: KLEstimator = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    """``reward``: the caller takes it from the rewards, by what ``score`` says of the reference."""
    temperature: float = Field(default=1.0, gt=0)
    """The sampling temperature: log-probs here must speak of the distribution that the engine drew from."""

    updates_per_batch: int = Field(default=1, ge=1)
    """Optimizer updates in one epoch over a batch; its rows are shuffled and split that many ways."""
    epochs: int = Field(default=1, ge=1)
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Padded tokens in one forward pass; a single longer row still goes through alone. On CPU 1,000 to 4,000 is
    quickest (what fits the cache), on a GPU as many as its memory holds."""
    head_tokens: int = Field(default=4096, ge=1)
    """Response tokens whose logits exist at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the passes' matrix products. Parameters, gradients, norms, moments and losses are float32 in either case."""
    activation_checkpointing: bool = False
    """Keep the input of each block alone and compute it again on the way back."""
    seed: int = 0

    @model_validator(mode="after")
    def _loss_exists(self) -> Self:
        if self.loss not in POLICY_LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}; expected one of {', '.join(sorted(POLICY_LOSSES))}")
        return self

    def policy_loss(self) -> PolicyLoss:
        given = {f.name: value for f in fields(LossOptions) if (value := getattr(self, f.name)) is not None}
        loss = POLICY_LOSSES[self.loss].with_options(aggregation=self.aggregation, **given)
        band, veto = self.correction_band, self.correction_veto
        return corrected(loss, CorrectionSettings(self.correction, self.correction_cap, veto, band))

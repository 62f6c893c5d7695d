"""The plain torch learner: one process, CPU or one GPU.

Invariants: behaviour log-probs are taken as the engine reported them; the gradient of an update does not depend on how
its rows are split into micro-batches; an update whose gradient is not finite is skipped and counted, never applied;
``save`` then ``load`` continues bit for bit.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import copy
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roll_core.algorithms import token_weights
from roll_core.errors import CheckpointError
from roll_core.learners.base import Scores
from roll_core.learners.batching import micro_batches, row_lengths
from roll_core.learners.config import LearnerConfig
from roll_core.learners.logprobs import Scored, score
from roll_core.learners.objective import Objective, Step
from roll_core.learners.optimizers import make_optimizers
from roll_core.learners.saving import replacing
from roll_core.models.lora import plain_parameters
from roll_core.models.qwen import CausalLM
from roll_core.types import TrainBatch, Weights

_FILE = "learner.pt"


class TorchLearner:
    """A :class:`~roll_core.learners.base.Learner`. ``model`` is trained in place and belongs to the learner."""

    def __init__(
        self,
        model: CausalLM,
        config: LearnerConfig | None = None,
        *,
        device: str = "cpu",
        reference: CausalLM | None = None,
    ) -> None:
        """``reference``: the policy that ``kl_coef`` ties to; a copy of ``model`` as it is now unless given."""
        self.config = config or LearnerConfig()
        self.model = model.to(device)
        self._device = torch.device(device)
        self._reference: CausalLM | None = None
        if self.config.kl_coef and not self.config.reference_given:
            self._reference = copy.deepcopy(reference or model).to(device).requires_grad_(False)
        self._objective = Objective(self.config, has_reference=bool(self.config.kl_coef))
        for block in model.model.layers:
            block.recompute = self.config.activation_checkpointing  # type: ignore[assignment]
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._version = 0
        self._updates = 0
        self._decay = 1.0  # of the learning rate, by the progress of the run
        self.reset_optimizer()

    @property
    def version(self) -> int:
        return self._version

    def reset_optimizer(self) -> None:
        """Forget moments and warm-up: for the change from imitation to reinforcement."""
        self._optimizers = make_optimizers(self.model, self.config)
        self._updates = 0

    # -- training --------------------------------------------------------------------------------------------------

    def train_step(self, batch: TrainBatch, *, progress: float = 0.0) -> dict[str, float]:
        """All updates on one batch; the version rises by one. Metrics ``learner/…`` are means over the response tokens
        that were scored in all updates (rows without advantage are spared); ``behaviour_gap`` is
        |log π_θ − log π_behave|. Metrics ``mismatch/…`` are of the rows scored before the first of them, see
        :class:`~roll_core.algorithms.mismatch.MismatchMeter`."""
        begin = time.perf_counter()
        self._decay = self._objective.decay(progress)
        batch = to_device(batch, self._device)
        lengths = row_lengths(batch.mask_BT)
        telling = self._objective.telling(batch)
        reference_BT = batch.reference_logprobs_BT
        if self._objective.penalised and reference_BT is None:
            reference_BT = self._reference_logprobs(batch, lengths)
        step = Step(batch, lengths, telling, self._prox(batch, lengths, telling), reference_BT, self._version)
        for _ in range(self.config.epochs):
            for rows in self._objective.minibatches(len(lengths), self._generator):
                self._update_on(step, rows)
        self._version += 1
        lr = self._optimizers[0].param_groups[0]["lr"]
        return self._objective.metrics(step, lr=lr, seconds=time.perf_counter() - begin)

    def skip_step(self) -> dict[str, float]:
        """A new version with the same weights; optimizer, schedule and random state stay as they are."""
        self._version += 1
        return {"learner/skipped_steps": 1.0}

    def score(self, batch: TrainBatch) -> Scores:
        """Log-probs and entropy of the present policy, and the reference's log-probs if there is one."""
        moved = to_device(batch, self._device)
        lengths = row_lengths(moved.mask_BT)
        own = self._no_grad_scores(self.model, moved.tokens_BT, moved.mask_BT, lengths)
        reference_BT = None if self._reference is None else self._reference_logprobs(moved, lengths).cpu()
        return Scores(own.logprobs_BT.cpu(), own.entropy_BT.cpu(), reference_BT)

    def sft_step(self, tokens_BT: Tensor, mask_BT: Tensor, *, lr: float | None = None) -> dict[str, float]:
        """One update that imitates ``tokens_BT`` where the mask is 1 (token-mean cross entropy). No new version."""
        tokens_BT, mask_BT = tokens_BT.to(self._device), mask_BT.to(self._device, torch.float32)
        lengths = row_lengths(mask_BT)
        weights_BT = token_weights(mask_BT, "token-mean")
        total = 0.0
        for rows in micro_batches(list(range(len(lengths))), lengths, self.config.micro_batch_tokens):
            part = (rows, slice(0, lengths[rows[0]]))
            scored = self._score(self.model, tokens_BT[part], mask_BT[part], temperature=1.0)
            loss = -(scored.logprobs_BT * weights_BT[part]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        norm, applied = self._apply(lr or self.config.lr)
        return {"learner/loss": total, "learner/grad_norm": norm, "learner/skipped_updates": float(not applied)}

    def _prox(self, batch: TrainBatch, lengths: list[int], telling: set[int]) -> Tensor | None:
        """log π_prox of the whole batch; None where it is the present policy, known as soon as it is computed."""
        if not self._objective.needs_prox(batch):
            return self._objective.given_prox(batch)
        return self._no_grad_scores(self.model, batch.tokens_BT, batch.mask_BT, lengths, sorted(telling)).logprobs_BT

    def _update_on(self, step: Step, rows: list[int]) -> None:
        """One optimizer update on ``rows``."""
        weights_BT = self._objective.weights(step.batch, rows)
        for some in micro_batches([r for r in rows if r in step.telling], step.lengths, self.config.micro_batch_tokens):
            part = (some, slice(0, step.lengths[some[0]]))
            scored = self._score(self.model, step.batch.tokens_BT[part], step.batch.mask_BT[part])
            loss = self._objective.part_loss(step, part, scored, weights_BT)
            loss.backward()  # type: ignore[no-untyped-call]
        step.updated(*self._apply(self.config.lr * self._decay))

    def _apply(self, lr: float) -> tuple[float, bool]:
        """Clip, step and clear the accumulated gradient. Returns its norm and whether it was applied."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm).item()
        applied = norm < float("inf")  # false for NaN too
        if applied:
            self._updates += 1
            rise = self._objective.rise(self._updates)
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * rise
                optimizer.step()
        self.model.zero_grad(set_to_none=True)
        return norm, applied

    # -- log-probs -------------------------------------------------------------------------------------------------

    def logprobs(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Log-probs (BT, 0 outside the mask) of the present policy at the sampling temperature; no gradient."""
        tokens_BT, mask_BT = tokens_BT.to(self._device), mask_BT.to(self._device)
        return self._no_grad_scores(self.model, tokens_BT, mask_BT, row_lengths(mask_BT)).logprobs_BT

    def _reference_logprobs(self, batch: TrainBatch, lengths: list[int]) -> Tensor:
        if self._reference is None:
            raise ValueError("the reference is elsewhere (reference_given): its log-probs have to come with the batch")
        return self._no_grad_scores(self._reference, batch.tokens_BT, batch.mask_BT, lengths).logprobs_BT

    def _no_grad_scores(
        self, model: CausalLM, tokens_BT: Tensor, mask_BT: Tensor, lengths: list[int], only: list[int] | None = None
    ) -> Scored:
        out = Scored(*(torch.zeros(tokens_BT.shape, dtype=torch.float32, device=self._device) for _ in range(2)))
        with torch.no_grad():
            rows = list(range(len(lengths))) if only is None else only
            for some in micro_batches(rows, lengths, self.config.micro_batch_tokens):
                part = (some, slice(0, lengths[some[0]]))
                scored = self._score(model, tokens_BT[part], mask_BT[part])
                out.logprobs_BT[part], out.entropy_BT[part] = scored.logprobs_BT, scored.entropy_BT
        return out

    def _score(self, model: CausalLM, tokens_BT: Tensor, mask_BT: Tensor, temperature: float | None = None) -> Scored:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            return score(
                model,
                tokens_BT,
                mask_BT,
                temperature=self.config.temperature if temperature is None else temperature,
                head_tokens=self.config.head_tokens,
                entropy_gradient=self.config.entropy_coef > 0,
            )

    # -- state -----------------------------------------------------------------------------------------------------

    def weights(self) -> Weights:
        tensors = {n: p.to("cpu", copy=True) for n, p in plain_parameters(self.model).items()}
        return Weights(self._version, tensors)

    def save(self, directory: Path) -> None:
        """Write ``learner.pt``."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "reference": None if self._reference is None else self._reference.state_dict(),
            "optimizers": [o.state_dict() for o in self._optimizers],
            "generator": self._generator.get_state(),
            "version": self._version,
            "updates": self._updates,
        }
        with replacing(Path(directory) / _FILE) as partial:
            torch.save(state, partial)

    def load(self, directory: Path) -> None:
        """Raises CheckpointError when the file is missing, torn, or of another model."""
        path = Path(directory) / _FILE
        try:
            state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
            self.model.load_state_dict(state["model"])
            if self._reference is not None and state["reference"] is not None:
                self._reference.load_state_dict(state["reference"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self._generator.set_state(state["generator"].cpu())
        except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
            raise CheckpointError(f"{path} cannot be loaded into this learner: {error}") from error
        self._version, self._updates = int(state["version"]), int(state["updates"])

    def close(self) -> None:
        """There is nothing to end."""


def to_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    """The same batch, its BT tensors on ``device``."""
    moved = {
        f.name: value.to(device)
        for f in fields(TrainBatch)
        if f.name.endswith("_BT") and (value := getattr(batch, f.name)) is not None
    }
    return replace(batch, **moved)

"""One process of a Megatron learner: its share of the model, of the rows and of the optimizer.

Invariants: every rank is given the same calls with the same arguments and makes the same decisions; the rows of an
update are dealt to the data-parallel replicas, and losses and gradients of all replicas are summed, never averaged, so
that the result does not depend on the layout; an update whose gradient is not finite is skipped on every rank.

Shape legend: B rows, T tokens, N chosen positions, v the share of the vocabulary that this rank has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from safetensors.torch import save_file
from torch import Tensor

from roll_core.learners.base import Scores
from roll_core.learners.logprobs import Scored, micro_batches, row_lengths
from roll_core.learners.megatron.network import Positions, build, transformer_config
from roll_core.learners.megatron.spec import Spec
from roll_core.learners.megatron.state import Shards, load_learner, save_learner
from roll_core.learners.megatron.vocabulary import vocab_parallel_score
from roll_core.learners.objective import Objective, Step
from roll_core.learners.torch_learner import to_device
from roll_core.types import TrainBatch

Part = tuple[list[int], slice]
"""Index of a micro-batch into BT."""


class RankLearner:
    """What the learner's processes do. Needs an initialised ``torch.distributed`` of ``spec.layout.world`` ranks."""

    def __init__(self, spec: Spec, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.spec, self.config, self.device = spec, spec.learner, device
        layout = spec.layout
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=layout.tensor,
                pipeline_model_parallel_size=layout.pipeline,
                create_gloo_process_groups=False,
            )
        self.shards = Shards(spec)
        self.last = parallel_state.is_pipeline_last_stage()
        self.model, self.positions = self._network(tensors)
        self.reference = self._network(tensors) if self.config.kl_coef else None
        self.objective = Objective(self.config, has_reference=self.reference is not None)
        self._set_up_training()
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.version = 0
        self.updates = 0

    def _network(self, tensors: dict[str, Tensor]) -> tuple[GPTModel, Positions]:
        spec = self.spec
        again = self.config.activation_checkpointing
        transformer = transformer_config(spec.model, spec.layout, recompute=again, device=self.device)
        model, positions = build(spec.model, transformer, spec.layout)
        model.to(self.device)
        self.shards.fill(model, tensors)
        return model, positions

    def _set_up_training(self) -> None:
        """Megatron's data parallelism and optimizer around the model."""
        c, sharded = self.config, self.spec.distributed_optimizer
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=sharded
        )
        self.parallel = DistributedDataParallel(self.model.config, ddp, self.model)
        self.parallel.broadcast_params()

        def finish(model: list[Any], _num_tokens: Tensor | None = None, **more: Any) -> None:
            finalize_model_grads(model, None, **more)  # weights of tokens are in the loss already

        self.model.config.finalize_model_grads_func = finish
        optimizer = OptimizerConfig(
            optimizer="adam",
            lr=c.lr,
            weight_decay=c.weight_decay,
            adam_beta1=c.betas[0],
            adam_beta2=c.betas[1],
            adam_eps=1e-8,
            clip_grad=c.max_grad_norm,
            use_distributed_optimizer=sharded,
        )
        self.optimizer = get_megatron_optimizer(
            optimizer,
            [self.parallel],
            config_overrides=get_standard_config_overrides(optimizer),
            use_gloo_process_groups=False,
        )
        for group in self.optimizer.param_groups:  # what Megatron's own scheduler would do: matrices only
            group["weight_decay"] = c.weight_decay * group["wd_mult"]

    # -- training --------------------------------------------------------------------------------------------------

    def train_step(self, batch: TrainBatch, progress: float) -> dict[str, float]:
        """As :meth:`~roll_core.learners.base.Learner.train_step`; whole only on rank 0."""
        begin = time.perf_counter()
        lengths = row_lengths(batch.mask_BT)
        batch = to_device(batch, self.device)
        telling = self.objective.telling(batch)
        reference_BT = self._reference_logprobs(batch, lengths) if self.objective.penalised else None
        prox_BT = self.objective.given_prox(batch)
        if self.objective.needs_prox(batch):
            prox_BT = self._scores(self.model, self.positions, batch, lengths, sorted(telling)).logprobs_BT
        step = Step(batch, lengths, telling, prox_BT, reference_BT, self.version)
        lr = self.config.lr * self.objective.decay(progress)
        for _ in range(self.config.epochs):
            for rows in self.objective.minibatches(len(lengths), self.generator):
                self._update_on(step, rows, lr)
        self.version += 1
        self._merge(step)
        return self.objective.metrics(
            step, lr=lr * self.objective.rise(max(1, self.updates)), seconds=time.perf_counter() - begin
        )

    def _update_on(self, step: Step, rows: list[int], lr: float) -> None:
        """One optimizer update on ``rows``."""
        weights_BT = self.objective.weights(step.batch, rows)

        def loss(part: Part | None, scored: Scored) -> Tensor:
            if part is None:
                return scored.logprobs_BT.sum() * 0
            found = self.objective.part_loss(step, part, scored, weights_BT)
            return found.clone()  # the schedule may divide it in place

        self.parallel.zero_grad_buffer()
        self.optimizer.zero_grad()
        mine = self._mine([r for r in rows if r in step.telling], step.lengths)
        self._passes(self.parallel, self.positions, step.batch, step.lengths, mine, loss)
        step.updated(*self._apply(lr))

    def _apply(self, lr: float) -> tuple[float, bool]:
        """Clip and step. Returns the gradient's norm and whether it was applied; the same on every rank."""
        self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        applied = math.isfinite(norm)
        if applied:
            self.updates += 1
            for group in self.optimizer.param_groups:
                group["lr"] = lr * self.objective.rise(self.updates)
            for optimizer in self.optimizer.chained_optimizers:
                if parameters := optimizer.get_parameters():
                    clip_grad_by_total_norm_fp32(parameters, self.config.max_grad_norm, norm)
            self.optimizer.step_with_ready_grads()
        return norm, applied

    def _merge(self, step: Step) -> None:
        """Bring together on rank 0 what the last stages of all replicas counted."""
        counts = self.last and parallel_state.get_tensor_model_parallel_rank() == 0
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (dict(step.totals), step.mismatch) if counts else None)
        if dist.get_rank() == 0:
            for rank, counted in enumerate(found):
                if rank and counted is not None:
                    step.merge(*counted)

    # -- passes over the rows --------------------------------------------------------------------------------------

    def _mine(self, rows: list[int], lengths: list[int]) -> list[Part | None]:
        """The micro-batches of this replica: the rows are dealt by length, so that all have as much to do. A replica
        without rows makes an empty pass, as the others wait for it."""
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        ordered = sorted((r for r in rows if lengths[r]), key=lambda r: (-lengths[r], r))
        found = micro_batches(ordered[rank::size], lengths, self.config.micro_batch_tokens)
        return [(some, slice(0, lengths[some[0]])) for some in found] or [None]

    def _passes(
        self,
        model: Any,
        positions: Positions,
        batch: TrainBatch,
        lengths: list[int],
        parts: list[Part | None],
        then: Callable[[Part | None, Scored], Tensor | None],
        *,
        forward_only: bool = False,
    ) -> None:
        """Every part through the pipeline. On the last stage ``then`` gets its scores and gives its loss."""

        def finish(part: Part | None, chosen_N: Tensor, output: Tensor, non_loss_data: bool = False) -> Any:
            found = then(part, self._scored(batch, part, chosen_N, output))
            return None if non_loss_data else (found, torch.ones((), dtype=torch.int, device=self.device), {})

        def forward(iterator: Iterator[Part | None], network: Any) -> tuple[Tensor, Callable[..., Any]]:
            part = next(iterator)
            tokens_BT, chosen_N = self._inputs(batch, part)
            positions.chosen_N = chosen_N
            place_BT = torch.arange(tokens_BT.shape[1], device=self.device).expand_as(tokens_BT)
            return network(tokens_BT, place_BT, None), partial(finish, part, chosen_N)

        with torch.set_grad_enabled(not forward_only):
            get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=iter(parts),
                model=[model],
                num_microbatches=len(parts),
                seq_length=1,  # these two are told from stage to stage, with every micro-batch
                micro_batch_size=1,
                forward_only=forward_only,
                collect_non_loss_data=forward_only,
            )

    def _inputs(self, batch: TrainBatch, part: Part | None) -> tuple[Tensor, Tensor]:
        """Tokens that go in, and which positions of theirs predict a response token. Of an empty pass: one."""
        if part is None:
            return batch.tokens_BT[:1, :1], torch.zeros(1, dtype=torch.int64, device=self.device)
        chosen_N = (batch.mask_BT[part][:, 1:] > 0).flatten().nonzero().squeeze(1)
        return batch.tokens_BT[part][:, :-1], chosen_N

    def _scored(self, batch: TrainBatch, part: Part | None, chosen_N: Tensor, logits_1Nv: Tensor) -> Scored:
        """Log-probs and entropy of a part, 0 outside the mask; of an empty pass one number that hangs on the model."""
        tokens_BT = batch.tokens_BT[:1, :2] if part is None else batch.tokens_BT[part]
        rows, length = tokens_BT.shape
        logprob_N, entropy_N = vocab_parallel_score(
            logits_1Nv[0],
            tokens_BT[:, 1:].flatten().index_select(0, chosen_N),
            vocab=self.spec.model.vocab,
            rank=parallel_state.get_tensor_model_parallel_rank(),
            temperature=self.config.temperature,
            group=parallel_state.get_tensor_model_parallel_group(),
        )
        entropy_N = entropy_N if self.config.entropy_coef > 0 else entropy_N.detach()

        def dense(value_N: Tensor) -> Tensor:
            flat = value_N.new_zeros(rows * (length - 1)).index_copy(0, chosen_N, value_N)
            return torch.cat((value_N.new_zeros(rows, 1), flat.view(rows, length - 1)), 1)

        return Scored(dense(logprob_N), dense(entropy_N))

    # -- scores ----------------------------------------------------------------------------------------------------

    def score(self, batch: TrainBatch) -> Scores | None:
        """As :meth:`~roll_core.learners.base.Learner.score`; from rank 0 alone, for all have the same."""
        lengths = row_lengths(batch.mask_BT)
        batch = to_device(batch, self.device)
        own = self._scores(self.model, self.positions, batch, lengths)
        reference_BT = None if self.reference is None else self._reference_logprobs(batch, lengths).cpu()
        if dist.get_rank():
            return None
        return Scores(own.logprobs_BT.cpu(), own.entropy_BT.cpu(), reference_BT)

    def _reference_logprobs(self, batch: TrainBatch, lengths: list[int]) -> Tensor:
        assert self.reference is not None
        return self._scores(*self.reference, batch, lengths).logprobs_BT

    def _scores(
        self,
        model: GPTModel,
        positions: Positions,
        batch: TrainBatch,
        lengths: list[int],
        only: list[int] | None = None,
    ) -> Scored:
        """Of the rows ``only`` (all of them), computed by all replicas together, known to every rank."""
        both_2BT = torch.zeros((2, *batch.tokens_BT.shape), dtype=torch.float32, device=self.device)

        def keep(part: Part | None, scored: Scored) -> None:
            if part is not None:
                both_2BT[0][part], both_2BT[1][part] = scored.logprobs_BT, scored.entropy_BT

        rows = list(range(len(lengths))) if only is None else only
        self._passes(model, positions, batch, lengths, self._mine(rows, lengths), keep, forward_only=True)
        if self.last and self.spec.layout.data > 1:
            dist.all_reduce(both_2BT, group=parallel_state.get_data_parallel_group())
        if self.spec.layout.pipeline > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(both_2BT, source, group=parallel_state.get_pipeline_model_parallel_group())
        return Scored(both_2BT[0], both_2BT[1])

    # -- state -----------------------------------------------------------------------------------------------------

    def skip_step(self) -> None:
        self.version += 1

    def write_weights(self, file: Path) -> None:
        """The parameters under Hugging Face's names, in one safetensors file that rank 0 writes."""
        tensors = self.shards.gather(self.shards.parameters(self.model))
        if dist.get_rank() == 0:
            save_file(tensors, file)

    def save(self, directory: Path) -> None:
        save_learner(self, directory)

    def load(self, directory: Path) -> int:
        """The version that was saved. Raises CheckpointError when it is missing, torn, or of another model."""
        load_learner(self, directory)
        return self.version

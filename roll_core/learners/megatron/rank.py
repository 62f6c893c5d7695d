"""One process of a Megatron learner: its share of the model, of the rows and of the optimizer.

Invariants: the rows of an update are dealt to the data-parallel replicas, and losses and gradients of all replicas are
summed, never averaged, so that the result does not depend on the layout; an update whose gradient is not finite is
skipped on every rank.

Shape legend: B rows, T tokens, N chosen positions, v the share of the vocabulary that this rank has.
"""

from __future__ import annotations

import math
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
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from safetensors.torch import save_file
from torch import Tensor

from roll_core.learners.batching import deal, micro_batches
from roll_core.learners.logprobs import Scored
from roll_core.learners.megatron.network import Positions, build, transformer_config
from roll_core.learners.megatron.passes import Part, Pass, lay_out
from roll_core.learners.megatron.spec import Spec
from roll_core.learners.megatron.state import Shards, fill_optimizer, load_learner, main_parameters, save_learner
from roll_core.learners.megatron.vocabulary import vocab_parallel_score
from roll_core.learners.objective import Step
from roll_core.learners.shared_rank import SharedRank
from roll_core.types import TrainBatch


class RankLearner(SharedRank):
    """What the learner's processes do. Needs an initialised ``torch.distributed`` of ``spec.layout.world`` ranks."""

    def __init__(self, spec: Spec, tensors: dict[str, Tensor], device: torch.device) -> None:
        super().__init__(spec.learner, device)
        self.spec, self.packed = spec, spec.packing
        layout = spec.layout
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=layout.tensor,
                pipeline_model_parallel_size=layout.pipeline,
                create_gloo_process_groups=False,
            )
            model_parallel_cuda_manual_seed(0)  # nothing is drawn, but sequence parallelism asks for the streams
        self.shards = Shards(spec)
        self.last = parallel_state.is_pipeline_last_stage()
        self.model, self.positions = self._network(tensors)
        self.reference = self._network(tensors) if self.has_reference else None
        self._set_up_training()
        fill_optimizer(self, tensors)

    def _network(self, tensors: dict[str, Tensor]) -> tuple[GPTModel, Positions]:
        spec = self.spec
        transformer = transformer_config(spec.model, spec.layout, self.config, self.device.type)
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
            bf16=self.model.config.bf16,
            params_dtype=self.model.config.params_dtype,
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
        if self.packed and self._counts():
            mine_too = [row for part in mine if part for row in part[0]]
            step.would_pad(micro_batches(mine_too, step.lengths, self.config.micro_batch_tokens))
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

    def _counts(self) -> bool:
        return bool(self.last and parallel_state.get_tensor_model_parallel_rank() == 0)

    # -- passes over the rows --------------------------------------------------------------------------------------

    def _mine(self, rows: list[int], lengths: list[int]) -> list[Part | None]:
        """The micro-batches of this replica: the rows are dealt by length, so that all have as much to do. A replica
        without rows makes an empty pass, as the others wait for it."""
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        dealt = deal(rows, lengths, self.config.micro_batch_tokens, size, packed=self.packed)[rank]
        return [(some, slice(0, lengths[some[0]])) for some in dealt if some] or [None]

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

        multiple = self.spec.layout.tensor if self.spec.layout.sequence else 1

        def finish(part: Part | None, laid: Pass, output: Tensor, non_loss_data: bool = False) -> Any:
            found = then(part, self._scored(laid, output))
            return None if non_loss_data else (found, torch.ones((), dtype=torch.int, device=self.device), {})

        def forward(iterator: Iterator[Part | None], network: Any) -> tuple[Tensor, Callable[..., Any]]:
            part = next(iterator)
            laid = lay_out(batch, part, lengths, packed=self.packed, multiple=multiple)
            positions.chosen_N = laid.chosen_N
            output = network(laid.tokens_BT, None, None, packed_seq_params=laid.packing)
            return output, partial(finish, part, laid)

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

    def _scored(self, laid: Pass, logits_1Nv: Tensor) -> Scored:
        """Log-probs and entropy of a pass, 0 outside the mask; they hang on the model even where nothing is chosen."""
        logprob_N, entropy_N = vocab_parallel_score(
            logits_1Nv[0],
            laid.target_N,
            vocab=self.spec.model.vocab,
            rank=parallel_state.get_tensor_model_parallel_rank(),
            temperature=self.config.temperature,
            group=parallel_state.get_tensor_model_parallel_group(),
        )
        return laid.scored(logprob_N, entropy_N if self.config.entropy_coef > 0 else entropy_N.detach())

    # -- scores ----------------------------------------------------------------------------------------------------

    def _scores(
        self, batch: TrainBatch, lengths: list[int], only: list[int] | None = None, *, reference: bool = False
    ) -> Scored:
        """The replicas share the rows out."""
        network = self.reference if reference else (self.model, self.positions)
        assert network is not None
        both_2BT = torch.zeros((2, *batch.tokens_BT.shape), dtype=torch.float32, device=self.device)

        def keep(part: Part | None, scored: Scored) -> None:
            if part is not None:
                both_2BT[0][part], both_2BT[1][part] = scored.logprobs_BT, scored.entropy_BT

        rows = list(range(len(lengths))) if only is None else only
        self._passes(*network, batch, lengths, self._mine(rows, lengths), keep, forward_only=True)
        if self.last and self.spec.layout.data > 1:
            dist.all_reduce(both_2BT, group=parallel_state.get_data_parallel_group())
        if self.spec.layout.pipeline > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(both_2BT, source, group=parallel_state.get_pipeline_model_parallel_group())
        return Scored(both_2BT[0], both_2BT[1])

    # -- state -----------------------------------------------------------------------------------------------------

    def write_weights(self, file: Path) -> None:
        tensors = self.shards.gather(main_parameters(self))
        if dist.get_rank() == 0:
            save_file(tensors, file)

    def save(self, directory: Path) -> None:
        save_learner(self, directory)

    def load(self, directory: Path) -> int:
        load_learner(self, directory)
        return self.version

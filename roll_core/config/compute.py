"""The part of a recipe that says who computes, on what, and where."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from roll_core.config.algorithm import Algorithm
from roll_core.config.section import Natural, Positive, Section, Share


class Engine(Section):
    """What samples."""

    kind: Literal["torch", "vllm"] = "torch"
    """`torch`: embedded, continuous batching, on the CPU or one GPU. `vllm`: vLLM in processes of its own, for GPUs
    (`pip install 'rock-roll[vllm]'`)."""
    count: Positive = 1
    """Engines, each with its own weights, cache and thread. The episodes of a group are spread over all of them."""
    restarts: Natural = 3
    """Engines that die are replaced, with the newest weights, and their requests go on with the tokens they have; so
    many times in ten minutes, all engines together. One death more, with none left, ends the run."""
    device: str | tuple[str, ...] = "cpu"
    """`cpu`, `cuda`, `cuda:1`… With several engines: `cuda:{i}` puts each on its own, from `cuda:0` on; or a list."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of sampling. On CPUs `float32` is the faster one."""
    slots: Positive = 16
    """Sequences whose KV cache is held at once. Fewer than `rollout.concurrency` costs recomputation. `vllm`: the
    most that are decoded at once (`max_num_seqs`)."""
    prefill_tokens: Positive = 512
    """Prompt tokens read per pass, beside the sequences that decode. `vllm`: tokens of a pass, those included
    (`max_num_batched_tokens`)."""
    tensor_parallel: Positive = 1
    """`vllm` only: GPUs that share one engine's matrices, from `device` on."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """`vllm` only: share of a GPU's memory for weights and KV cache. A learner on the same GPU needs the rest."""
    kv_cache_gib: Annotated[float, Field(ge=0)] = 0.0
    """`vllm` only: size of the KV cache, GiB. 0: what `gpu_memory_utilization` leaves; on the CPU 1."""
    enforce_eager: bool = False
    """`vllm` only: no compilation and no CUDA graphs: starts sooner, decodes more slowly."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of each engine."""
        if isinstance(self.device, str):
            return tuple(self.device.replace("{i}", str(i)) for i in range(self.count))
        return self.device

    @model_validator(mode="after")
    def _a_device_each(self) -> Self:
        if len(self.devices) != self.count:
            raise ValueError(
                f"engine.device lists {len(self.devices)} devices for engine.count={self.count} engines: name one each"
            )
        return self


class Learner(Section):
    """What trains."""

    kind: Literal["torch", "fsdp", "megatron"] = "torch"
    """`torch`: in the trainer's process, on the CPU or one GPU. `fsdp`: in `processes` of its own that share out
    parameters, gradients and moments (FSDP2), one GPU each. `megatron`: the same on Megatron-Core, by tensor, pipeline
    and data parallelism (extra `megatron`)."""
    processes: Positive = 1
    """`fsdp` and `megatron`: processes that share the model and the rows of a batch."""
    tensor_parallel: Positive = 1
    """`megatron` only: processes that share each layer's matrices."""
    pipeline_parallel: Positive = 1
    """`megatron` only: stages that the layers are cut into. Of `processes`, every tensor_parallel × pipeline_parallel
    hold the model once; as many such replicas as there are share the rows."""
    sequence_parallel: bool = False
    """`megatron` only: where a layer works on each position by itself, the ranks of `tensor_parallel` share them out:
    each keeps fewer activations."""
    distributed_optimizer: bool = False
    """`megatron` only: replicas share out the optimizer's moments, in place of a copy each."""
    packing: bool = True
    """`megatron` only: rows of a micro-batch lie end to end, without padding, and attend to themselves alone. Changes
    time and memory, not the result; `learner/padding_spared` says what it saves."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`… With several processes `cuda:i` is the first one's, the next ones follow."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the passes' matrix products: `bfloat16` for GPUs. Parameters, gradients and moments are kept in
    float32 in either case; `megatron` has a copy of the parameters in bfloat16 beside them."""
    activation_checkpointing: bool = False
    """Keep of a block its input alone and compute the rest again on the way back: a third more time for a pass, memory
    for much longer sequences."""
    restarts: Natural = 3
    """`fsdp`, `megatron`, or a learner on Ray: how often one that died is replaced. It goes on from its last checkpoint
    with the batches since, so that nothing is lost and nothing differs. One death more ends the run. Each other role of
    a step that is on Ray may be replaced as often."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw` for every parameter, or `muon` for the matrices inside the blocks and AdamW for the rest."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate of reinforcement learning."""
    warmup_updates: Natural = 0
    """Updates over which the learning rate rises from 0."""
    lr_end: Share = 1.0
    """Factor on the rate at the end of the run, approached linearly with `training.steps` or `training.time_budget_s`,
    whichever is further on. At a constant rate the noise of the last batches stays in the weights."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    beta1: Share = 0.9
    """AdamW's decay of the first moment."""
    beta2: Share = 0.95
    """AdamW's decay of the second moment."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm to which the gradient is clipped."""
    updates_per_batch: Positive = 1
    """Optimizer updates in one pass over a batch."""
    epochs: Positive = 1
    """Passes over a batch."""
    micro_batch_tokens: Positive = 8192
    """Tokens, padding included, in one forward and backward pass. Changes memory, not the result."""
    lora_rank: Natural = 0
    """Rank of the adapters that are trained in place of the matrices of the blocks (LoRA); engines and exports get the
    merged weights. The warm start trains everything. 0: no adapters, the whole model is trained."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """Adapters count lora_alpha / lora_rank times."""

    @model_validator(mode="after")
    def _several_share(self) -> Self:
        if self.processes > 1 and self.kind == "torch":
            raise ValueError(
                f"learner.processes={self.processes} needs a learner.kind that is shared out, such as 'fsdp'"
            )
        return self

    @model_validator(mode="after")
    def _layout(self) -> Self:
        size = self.tensor_parallel * self.pipeline_parallel
        if self.kind != "megatron" and (size > 1 or self.distributed_optimizer or self.sequence_parallel):
            raise ValueError(
                "learner.tensor_parallel, learner.pipeline_parallel, learner.sequence_parallel and "
                f"learner.distributed_optimizer are for learner.kind 'megatron', found {self.kind!r}"
            )
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise ValueError("learner.sequence_parallel is for the ranks of learner.tensor_parallel: that is 1")
        if self.processes % size:
            raise ValueError(
                f"learner.processes={self.processes} is no multiple of tensor_parallel × pipeline_parallel = {size}"
            )
        return self

    @model_validator(mode="after")
    def _what_megatron_has(self) -> Self:
        missing = [
            f"{key}={value}"
            for key, value, has in (
                ("optimizer", self.optimizer, "adamw"),
                ("lora_rank", self.lora_rank, 0),
            )
            if value != has
        ]
        if self.kind == "megatron" and missing:
            raise ValueError(f"learner.kind 'megatron' is without {', '.join(missing)}: use 'torch' or 'fsdp' for that")
        return self

    @model_validator(mode="after")
    def _adapters_by_adamw(self) -> Self:
        if self.lora_rank and self.optimizer == "muon":
            raise ValueError("learner.optimizer 'muon' is for whole matrices: with learner.lora_rank use 'adamw'")
        return self


class Placement(Section):
    """Where the roles run: in the trainer's process, or as actors on the machines of a Ray cluster."""

    ray: str = ""
    """Address of a Ray cluster, as `auto` or `host:port`. Empty: everything is here. `rock train --ray ADDRESS`."""
    engines: Literal["spread", "packed", "here"] = "spread"
    """With `ray`: engines `spread` over as many machines as there are, `packed` on as few, or all `here`. An engine
    that its machine takes with it is replaced on another (`engine.restarts`)."""
    learner: Literal["apart", "colocated", "here"] = "apart"
    """With `ray`: the learner on devices `apart` from the engines', `colocated` with the first of them (sharing its
    GPU: leave it room by `engine.gpu_memory_utilization` or `engine.slots`), or `here`. One that its machine takes with
    it is replaced on another (`learner.restarts`)."""
    cpus: Positive = 1
    """With `ray`: processors that an engine, each process of the learner, and each other role there is given."""
    critics: Literal["here", "colocated", "apart"] = "here"
    """With `ray`: the critics `here` with the trainer, `colocated` with the learner (sharing its GPU), or `apart` on a
    device of their own. Lost ones are replaced (`learner.restarts`), go on from their last checkpoint with the batches
    since, and nothing differs."""
    actor_attn: Literal["here", "colocated", "apart"] = "here"
    """With `ray`: likewise whoever reads the policy's attention (`algorithm.credit` `rhythm`). A lost one is replaced
    and gets the present weights."""
    reference: Literal["learner", "here", "colocated", "apart"] = "learner"
    """Where the policy of `algorithm.kl_coef` is: in the `learner`, shared out over its processes, or whole in a role
    of its own, which takes it off the learner's devices: `here`, or with `ray` `colocated` or `apart` like the critics.
    A lost one is replaced and gets the weights that reinforcement learning began with. May not change when a run is
    continued."""


class Weights(Section):
    """How new weights reach engines that are actors on Ray (`placement.ray`). Engines of the trainer's own process copy
    them, and vLLM's processes map a file in shared memory, whatever is said here."""

    transport: Literal["auto", "object_store", "shared_memory", "file", "broadcast"] = "auto"
    """`object_store`: Ray's, one copy for each machine. `shared_memory`: for engines on the trainer's machine. `file`:
    through `folder`. `broadcast`: to all engines at once in a `torch.distributed` group, by NCCL where trainer and
    engines have GPUs, else by gloo. `auto`: `shared_memory` where all engines begin on the trainer's machine, else
    `object_store`."""
    folder: str = ""
    """`file` only: a directory that the trainer and every engine's machine have under this name."""
    delta: bool = False
    """Send what changed since the version before, instead of all weights. Pays in bfloat16 and for parts that do not
    learn; costs a copy of the weights with the trainer. Who holds another version, or finds a checksum wrong, is sent
    the whole."""

    @model_validator(mode="after")
    def _a_folder_for_files(self) -> Self:
        if (self.transport == "file") != bool(self.folder):
            raise ValueError(
                f"weights.transport 'file' and weights.folder need each other, found {self.transport!r} with folder "
                f"{self.folder!r}"
            )
        return self


def misplaced(placement: Placement, learner: Learner, engine: Engine, algorithm: Algorithm) -> str | None:
    """What the sections on who computes where ask for and cannot have, or None."""
    if placement.learner == "colocated" and (learner.processes > 1 or engine.tensor_parallel > 1):
        return "placement.learner 'colocated' shares one GPU: it needs learner.processes=1, engine.tensor_parallel=1"
    if engine.tensor_parallel > 1 and (not placement.ray or placement.engines == "here"):
        firsts = sorted(int(device.partition(":")[2] or 0) for device in engine.devices if device.startswith("cuda"))
        if any(later - earlier < engine.tensor_parallel for earlier, later in pairwise(firsts)):
            return (
                f"engine.device gives some GPUs to two engines: with engine.tensor_parallel={engine.tensor_parallel} "
                f"each has that many from its own on, found {', '.join(engine.devices)}; list devices that far apart"
            )
    cuda = learner.device.startswith("cuda")
    for role in ("critics", "actor_attn", "reference"):
        if getattr(placement, role) == "colocated" and cuda and learner.processes > 1:
            return (
                f"placement.{role} 'colocated' shares the learner's one GPU, and learner.processes={learner.processes} "
                "have several: use 'apart' or 'here'"
            )
    if placement.reference != "learner" and not algorithm.kl_coef:
        return f"placement.reference {placement.reference!r} is for the policy of algorithm.kl_coef, which is 0"
    return None

"""From a recipe to the parts it names. The only place that knows which class implements what."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from roll_core.cluster.distribution import Distribution
from roll_core.cluster.placement import Seat, at_seat, make_plan
from roll_core.cluster.ray_cluster import RayCluster
from roll_core.cluster.ray_engine import RayEngine
from roll_core.cluster.ray_roles import Make, RayCritics, RayLearner, RayReader, RayReference
from roll_core.cluster.shape import new_shape
from roll_core.config import Recipe
from roll_core.engines.base import Engine
from roll_core.engines.renewal import Renewal
from roll_core.engines.router import Router
from roll_core.engines.torch_engine import TorchEngine
from roll_core.engines.vllm_engine import VllmEngine, VllmOptions
from roll_core.errors import RecipeError
from roll_core.learners.actor_attn import AttentionReader
from roll_core.learners.base import ActorAttn, Critics, Learner, Reference, Role
from roll_core.learners.config import LearnerConfig
from roll_core.learners.critics import CriticLearner, CriticSettings, ValueModel
from roll_core.learners.fsdp import FsdpLearner
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.learner import MegatronLearner
from roll_core.learners.recovering import RecoveringCritics, RecoveringLearner, RecoveringReader, RecoveringReference
from roll_core.learners.reference import ReferencePolicy
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ChatTemplate, ModelConfig, Tokenizer, load_hf, train_tokenizer
from roll_core.models.checkpoint import load_tensors
from roll_core.models.lora import add_lora, plain_copy, plain_parameters
from roll_core.rollout.prompting import (
    ChatPrompter,
    Prompter,
    TextRules,
    TranscriptPrompter,
    transcript_action,
    transcript_text,
)
from roll_core.training.credit_flow import rhythm_settings
from roll_core.training.demonstrations import Demonstration
from roll_core.training.roles import Roles
from roll_core.types import Weights

_CRITIC_SEEDS = 7919
"""A prime, so that critics of neighbouring seeds do not begin alike."""

R = TypeVar("R", bound=Role)
MakeRole = Callable[[Recipe, CausalLM], Any]
"""A role that begins from this policy; None where the recipe has no such role."""


def checkpoint_folder(recipe: Recipe) -> Path:
    """The directory of the recipe's checkpoint, fetched from the Hub if it is a name there."""
    return _folder(recipe.model.path, "model.path")


def _folder(name: str, key: str) -> Path:
    """The directory ``name``, or that of the Hub's checkpoint of this name. ``key``: where the recipe says so."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") == 1 and not name.startswith(("/", ".", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
        except (HfHubHTTPError, OSError) as error:
            raise RecipeError(f"{key} {name!r} is no directory, nor to be had from the Hub: {error}") from error
    raise RecipeError(f"{key} {name!r} is neither a directory nor a name on the Hub.")


def make_tokenizer(recipe: Recipe, demonstrations: Sequence[Demonstration]) -> Tokenizer:
    if recipe.tokenizer.source == "checkpoint":
        return Tokenizer.load(checkpoint_folder(recipe))
    rules = TextRules(recipe.prompt.rules)
    texts = (
        transcript_text(step.observation, rules) + transcript_action(step.action)
        for demonstration in demonstrations
        for step in demonstration.steps
    )
    return train_tokenizer(texts, recipe.tokenizer.vocab_size, join_numbers=recipe.tokenizer.join_numbers)


def make_prompter(recipe: Recipe, tokenizer: Tokenizer) -> Prompter:
    prompt = recipe.prompt
    rules = TextRules(prompt.rules)
    if prompt.format == "transcript":
        return TranscriptPrompter(tokenizer, rules)
    return ChatPrompter(
        tokenizer,
        ChatTemplate.load(checkpoint_folder(recipe)),
        end_token=prompt.end_token,
        system=prompt.system,
        rules=rules,
        show_admissible=prompt.show_admissible,
        whole_answers=prompt.answer == "whole",
    )


def make_model(recipe: Recipe, tokenizer: Tokenizer) -> CausalLM:
    model = recipe.model
    if model.source == "checkpoint":
        return load_hf(checkpoint_folder(recipe), dtype=torch.float32)
    return CausalLM(new_shape(recipe, model, tokenizer.vocab_size), seed=recipe.training.seed)


def learner_config(recipe: Recipe) -> LearnerConfig:
    learner, algorithm = recipe.learner, recipe.algorithm
    return LearnerConfig(
        optimizer=learner.optimizer,
        lr=learner.lr,
        betas=(learner.beta1, learner.beta2),
        weight_decay=learner.weight_decay,
        max_grad_norm=learner.max_grad_norm,
        warmup_updates=learner.warmup_updates,
        lr_end=learner.lr_end,
        updates_per_batch=learner.updates_per_batch,
        epochs=learner.epochs,
        micro_batch_tokens=learner.micro_batch_tokens,
        loss=algorithm.loss,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
        cap=algorithm.cap,
        length=algorithm.length,
        weight_positive=algorithm.weight_positive,
        weight_negative=algorithm.weight_negative,
        tau=algorithm.tau,
        aggregation=algorithm.aggregation,
        correction=algorithm.correction,
        correction_cap=algorithm.correction_cap,
        correction_veto=algorithm.correction_veto,
        correction_band=algorithm.correction_band,
        entropy_coef=algorithm.entropy_coef,
        kl_coef=algorithm.kl_coef,
        reference_given=recipe.placement.reference != "learner",
        kl_estimator=algorithm.kl_estimator,
        kl_in=algorithm.kl_in,
        temperature=recipe.rollout.temperature,
        dtype=learner.dtype,
        activation_checkpointing=learner.activation_checkpointing,
        seed=recipe.training.seed,
    )


def make_learner(recipe: Recipe, model: CausalLM) -> Learner:
    """Here. ``model`` is trained in place by the torch learner, and where any other one begins."""
    if recipe.learner.kind == "torch":
        return make_bare_learner(recipe, model)
    begun = copy.deepcopy(model)
    return RecoveringLearner(lambda: make_bare_learner(recipe, copy.deepcopy(begun)), recipe.learner.restarts)


def make_bare_learner(recipe: Recipe, model: CausalLM) -> Learner:
    """One that is not replaced when it dies; on this machine."""
    learner = recipe.learner
    if learner.lora_rank:
        add_lora(model, learner.lora_rank, learner.lora_alpha, seed=recipe.training.seed)
    if learner.kind == "torch":
        return TorchLearner(model, learner_config(recipe), device=learner.device)
    threads = recipe.training.threads and max(1, recipe.training.threads // learner.processes)
    if learner.kind == "megatron":
        tensor, pipeline = learner.tensor_parallel, learner.pipeline_parallel
        return MegatronLearner(
            model,
            learner_config(recipe),
            layout=Layout(tensor, pipeline, learner.processes // (tensor * pipeline), learner.sequence_parallel),
            distributed_optimizer=learner.distributed_optimizer,
            packing=learner.packing,
            device=learner.device,
            threads=threads,
        )
    return FsdpLearner(
        model, learner_config(recipe), processes=learner.processes, device=learner.device, threads=threads
    )


def make_roles(recipe: Recipe, model: CausalLM, cluster: RayCluster | None = None) -> Roles:
    """Whoever takes part in a learner step. ``model`` is the policy, trained in place where the learner is here.
    ``cluster``: where those are to be that the recipe has there."""
    away = _Away(recipe, model, cluster)
    critics, reference = away.critics(), away.reference()  # before a learner here changes the model
    learner = away.learner()
    return Roles(learner, critics, away.actor_attn(learner), reference)


class _Away:
    """Makes a role where the recipe has it: in an actor that is replaced when it is lost, or here."""

    def __init__(self, recipe: Recipe, model: CausalLM, cluster: RayCluster | None) -> None:
        self._recipe, self._model, self._cluster = recipe, model, cluster
        self._begun: dict[str, Tensor] | None = None

    def learner(self) -> Learner:
        if (make := self._actor("learner", RayLearner, make_bare_learner)) is not None:
            return RecoveringLearner(make, self._recipe.learner.restarts)
        return make_learner(self._recipe, self._model)

    def critics(self) -> Critics | None:
        if (make := self._actor("critics", RayCritics, make_critics)) is not None:
            return RecoveringCritics(make, self._recipe.learner.restarts, role="critics")
        return make_critics(self._recipe, self._model)

    def actor_attn(self, learner: Learner) -> ActorAttn | None:
        if (make := self._actor("actor_attn", RayReader, make_actor_attn)) is not None:
            return RecoveringReader(make, self._recipe.learner.restarts, role="actor_attn")
        return make_actor_attn(self._recipe, self._model, learner)

    def reference(self) -> Reference | None:
        if (make := self._actor("reference", RayReference, make_reference)) is not None:
            return RecoveringReference(make, self._recipe.learner.restarts, role="reference")
        return make_reference(self._recipe, self._model)

    def _actor(self, role: str, kind: Callable[[RayCluster, Seat, Make], R], make: MakeRole) -> Callable[[], R] | None:
        """How to make it in its seat on the cluster; None where it has none."""
        seat = self._cluster.plan.away(role) if self._cluster is not None else None
        if self._cluster is None or seat is None:
            return None
        there = partial(_made_there, make, at_seat(self._recipe, seat), self._model.config, self._parameters())
        return partial(kind, self._cluster, seat, there)

    def _parameters(self) -> dict[str, Tensor]:
        """Of the policy as it is before any step: a copy, for the learner here changes its own."""
        if self._begun is None:
            self._begun = {n: p.to("cpu", copy=True) for n, p in plain_parameters(self._model).items()}
        return self._begun


def _made_there(make: MakeRole, recipe: Recipe, config: ModelConfig, parameters: dict[str, Tensor]) -> Any:
    """In an actor's process: a role that begins from a policy with these parameters."""
    model = CausalLM(config, seed=None)
    load_tensors(model, parameters)
    return make(recipe, model)


def make_cluster(recipe: Recipe, config: ModelConfig) -> RayCluster | None:
    """The Ray cluster, with all reserved that the recipe wants there; None where it wants nothing. Blocks."""
    plan = make_plan(recipe, config)
    return RayCluster(recipe.placement.ray, plan) if plan.bundles else None


def make_actor_attn(recipe: Recipe, model: CausalLM, learner: Learner | None = None) -> ActorAttn | None:
    """Whoever reads the policy's attention; None where ``algorithm.credit`` does without.

    The torch learner's parameters are read where they are; of another learner's this keeps a copy.
    """
    if "rhythm" not in recipe.algorithm.credit:
        return None
    shared = isinstance(learner, TorchLearner)
    return AttentionReader(
        learner.model if isinstance(learner, TorchLearner) else model,
        rhythm_settings(recipe),
        shared=shared,
        micro_batch_tokens=recipe.learner.micro_batch_tokens,
        record=recipe.rhythm.record,
        temperature=recipe.rollout.temperature,
        device=recipe.learner.device,
    )


def make_reference(recipe: Recipe, model: CausalLM) -> Reference | None:
    """The policy of ``kl_coef``, as ``model`` is now; None where there is none or the learner has it."""
    if recipe.placement.reference == "learner":
        return None
    return ReferencePolicy(model, learner_config(recipe), device=recipe.learner.device)


def make_critics(recipe: Recipe, model: CausalLM) -> Critics | None:
    """The recipe's critics; None where it has none. ``model`` is the policy as it is now; nothing is shared with it.

    Heads, and new trunks, differ from critic to critic. Raises RecipeError when a checkpoint has another tokenizer.
    """
    critic, algorithm, seed = recipe.critic, recipe.algorithm, recipe.training.seed
    if not critic.count:
        return None
    settings = CriticSettings(
        partition=critic.partition,
        lr=critic.lr,
        weight_decay=critic.weight_decay,
        max_grad_norm=critic.max_grad_norm,
        epochs=critic.epochs,
        updates_per_batch=critic.updates_per_batch,
        value_clip=critic.value_clip,
        targets=critic.targets,
        bootstrap=critic.bootstrap,
        gamma=algorithm.gamma,
        lam=algorithm.lam,
        level=algorithm.gae_level,
        micro_batch_tokens=recipe.learner.micro_batch_tokens,
        seed=seed,
    )
    seeds = [seed * _CRITIC_SEEDS + m for m in range(1, critic.count + 1)]
    models = [ValueModel(_critic_trunk(recipe, model, one), seed=one) for one in seeds]
    return CriticLearner(models, settings, device=critic.device or recipe.learner.device)


def _critic_trunk(recipe: Recipe, model: CausalLM, seed: int) -> CausalLM:
    critic = recipe.critic
    if critic.source == "policy":
        return plain_copy(model)
    if critic.source == "checkpoint":
        folder = _folder(critic.path, "critic.path")
        trunk = load_hf(folder, dtype=torch.float32)
        _same_tokens(recipe, model, folder, trunk)
        return trunk
    return CausalLM(new_shape(recipe, critic, model.config.vocab), seed=seed)


def _same_tokens(recipe: Recipe, model: CausalLM, folder: Path, trunk: CausalLM) -> None:
    """A critic reads the policy's token ids. Checkpoints of one family may pad their embeddings differently, so the
    tokenizers are compared where there are two; else the embeddings must have the same size."""
    if recipe.tokenizer.source == "checkpoint" and (folder / "tokenizer.json").is_file():
        mine, theirs = Tokenizer.load(checkpoint_folder(recipe)), Tokenizer.load(folder)
        differing = mine.differing(theirs)
        if not differing and trunk.config.vocab >= mine.vocab_size:
            return
        found = f"gives other ids to {len(differing)} tokens, {sorted(differing)[:3]} among them"
    elif trunk.config.vocab == model.config.vocab:
        return
    else:
        found = f"has {trunk.config.vocab} token ids, the policy {model.config.vocab}"
    raise RecipeError(
        f"critic.path {recipe.critic.path!r} {found}: a critic reads the policy's tokens. Give a checkpoint with the "
        "policy's tokenizer, or critic.source=policy or new."
    )


def make_engine(
    recipe: Recipe, config: ModelConfig, weights: Weights, tokenizer: Tokenizer, cluster: RayCluster | None = None
) -> Engine:
    """All engines as one, which replaces those that die. ``cluster``: where they are to be, if the recipe has them
    there; None: here."""
    away = cluster is not None and cluster.plan.away("engine 0") is not None
    distribution = Distribution(cluster, recipe, weights) if cluster and away else None

    def make(index: int, weights: Weights) -> Engine:
        if cluster is None or distribution is None:
            return make_one_engine(recipe, config, weights, tokenizer, index)
        seat = cluster.plan.seat(f"engine {index}")
        return RayEngine(cluster, distribution, seat, recipe, config, tokenizer, index, weights)

    engines = [make(index, weights) for index in range(recipe.engine.count)]
    renewal = Renewal(make, weights, recipe.engine.restarts)
    return Router(engines, renewal=renewal, weight_metrics=distribution.metrics if distribution else dict)


def make_one_engine(
    recipe: Recipe, config: ModelConfig, weights: Weights, tokenizer: Tokenizer, index: int = 0
) -> Engine:
    """Number ``index`` of the recipe's engines."""
    engine = recipe.engine
    # vLLM and what it needs are imported by this class, when it starts.
    maker = partial(VllmEngine, options=_vllm_options(recipe)) if engine.kind == "vllm" else TorchEngine
    return maker(
        config,
        weights,
        tokenizer=tokenizer,
        slots=engine.slots,
        max_context=recipe.model.max_context,
        prefill_tokens=engine.prefill_tokens,
        threads=recipe.training.threads or None,
        device=engine.devices[index],
        dtype=getattr(torch, engine.dtype),
        seed=recipe.training.seed + index,
    )


def _vllm_options(recipe: Recipe) -> VllmOptions:
    engine = recipe.engine
    return VllmOptions(
        tensor_parallel=engine.tensor_parallel,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_gib=engine.kv_cache_gib,
        enforce_eager=engine.enforce_eager,
    )

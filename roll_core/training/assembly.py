"""From a recipe to the parts it names. The only place that knows which class implements what."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from roll_core.cluster.placement import make_plan
from roll_core.cluster.ray_cluster import RayCluster
from roll_core.cluster.ray_engine import Distribution, RayEngine
from roll_core.cluster.ray_learner import RayLearner
from roll_core.config import Recipe
from roll_core.engines.base import Engine, SamplingParams
from roll_core.engines.renewal import Renewal
from roll_core.engines.router import Router
from roll_core.engines.torch_engine import TorchEngine
from roll_core.engines.vllm_engine import VllmEngine, VllmOptions
from roll_core.errors import RecipeError
from roll_core.learners.actor_attn import AttentionReader
from roll_core.learners.base import ActorAttn, Critics, Learner
from roll_core.learners.config import LearnerConfig
from roll_core.learners.critics import CriticLearner, CriticSettings, ValueModel
from roll_core.learners.fsdp import FsdpLearner
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.learner import MegatronLearner
from roll_core.learners.recovering import RecoveringLearner
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ChatTemplate, ModelConfig, Tokenizer, load_hf, train_tokenizer
from roll_core.models.lora import add_lora, plain_copy
from roll_core.rollout.episode import EpisodeLimits, Player
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.prompting import (
    ChatPrompter,
    Prompter,
    TextRules,
    TranscriptPrompter,
    transcript_action,
    transcript_text,
)
from roll_core.rollout.sessions import LocalSessions, SessionFactory
from roll_core.rollout.tasks import TaskQueue
from roll_core.training.credit_flow import rhythm_settings
from roll_core.training.demonstrations import Demonstration, DemoSettings
from roll_core.training.roles import Roles
from roll_core.types import Weights

_CLOSE_MARGIN_S = 30.0
_CRITIC_SEEDS = 7919
"""A prime, so that critics of neighbouring seeds do not begin alike."""


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
    config = ModelConfig(
        vocab=tokenizer.vocab_size,
        hidden=model.hidden,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        intermediate=model.intermediate,
        rope_theta=model.rope_theta,
        max_context=model.max_context,
    )
    return CausalLM(config, seed=recipe.training.seed)


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
        kl_estimator=algorithm.kl_estimator,
        kl_in=algorithm.kl_in,
        temperature=recipe.rollout.temperature,
        dtype=learner.dtype,
        activation_checkpointing=learner.activation_checkpointing,
        seed=recipe.training.seed,
    )


def make_learner(recipe: Recipe, model: CausalLM, cluster: RayCluster | None = None) -> Learner:
    """``model`` is trained in place by the torch learner, and where any other one begins. ``cluster``: where the
    learner is to be, if the recipe has it there; None: here."""
    if cluster is not None and cluster.plan.seat("learner").bundle is not None:
        parameters = {name: p.detach().cpu() for name, p in model.named_parameters()}
        make = partial(RayLearner, cluster, cluster.plan.seat("learner"), recipe, model.config, parameters)
        return RecoveringLearner(make, recipe.learner.restarts)
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
        tensor, pipeline = recipe.learner.tensor_parallel, recipe.learner.pipeline_parallel
        return MegatronLearner(
            model,
            learner_config(recipe),
            layout=Layout(tensor, pipeline, learner.processes // (tensor * pipeline)),
            distributed_optimizer=recipe.learner.distributed_optimizer,
            device=learner.device,
            threads=threads,
        )
    return FsdpLearner(
        model, learner_config(recipe), processes=learner.processes, device=learner.device, threads=threads
    )


def make_roles(recipe: Recipe, model: CausalLM, cluster: RayCluster | None = None) -> Roles:
    """Whoever takes part in a learner step. ``model`` is the policy, trained in place."""
    learner = make_learner(recipe, model, cluster) if cluster else make_learner(recipe, model)
    return Roles(learner, make_critics(recipe, model), make_actor_attn(recipe, model, learner))


def make_cluster(recipe: Recipe, config: ModelConfig) -> RayCluster | None:
    """The Ray cluster, with all reserved that the recipe wants there; None where it wants nothing. Blocks."""
    plan = make_plan(recipe, config)
    return RayCluster(recipe.placement.ray, plan) if plan.bundles else None


def make_actor_attn(recipe: Recipe, model: CausalLM, learner: Learner) -> ActorAttn | None:
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
    config = ModelConfig(
        vocab=model.config.vocab,
        hidden=critic.hidden,
        layers=critic.layers,
        heads=critic.heads,
        kv_heads=critic.kv_heads,
        head_dim=critic.head_dim,
        intermediate=critic.intermediate,
        rope_theta=recipe.model.rope_theta,
        max_context=recipe.model.max_context,
    )
    return CausalLM(config, seed=seed)


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
    away = cluster is not None and cluster.plan.seat("engine 0").bundle is not None
    distribution = Distribution(cluster, weights, delta=recipe.placement.delta) if cluster and away else None

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


def make_machine(recipe: Recipe, tasks: Sequence[str], id_prefix: str) -> RolloutMachine:
    rollout = recipe.rollout
    settings = MachineSettings(
        alpha=rollout.alpha,
        group_size=rollout.group_size,
        groups_per_batch=rollout.groups_per_batch,
        extra_members=rollout.extra_members,
        extra_groups=rollout.extra_groups,
        order=rollout.order,
        filter_zero_variance=recipe.algorithm.filter_zero_variance,
        max_voids_per_group=rollout.max_voids_per_group,
        last_version=recipe.training.steps,
        seed=recipe.training.seed,
        id_prefix=id_prefix,
    )
    return RolloutMachine(settings, TaskQueue(tasks, recipe.training.seed))


def make_player(recipe: Recipe, sessions: SessionFactory, engine: Engine, prompter: Prompter) -> Player:
    rollout = recipe.rollout
    sampling = SamplingParams(
        max_tokens=rollout.max_tokens_per_turn,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        stop_token_ids=prompter.stop_token_ids,
        # A stop token does the same and costs no decoding.
        stop=() if prompter.stop_token_ids else prompter.stop,
    )
    limits = EpisodeLimits(
        max_turns=rollout.max_turns,
        max_invalid_turns=rollout.max_invalid_turns,
        max_tokens_per_turn=rollout.max_tokens_per_turn,
        max_context_tokens=recipe.model.max_context,
        open_s=recipe.platform.wait_s + _CLOSE_MARGIN_S,
        reset_s=rollout.reset_s + _CLOSE_MARGIN_S,
        step_s=rollout.step_s + _CLOSE_MARGIN_S,
        generate_s=rollout.generate_s,
        episode_s=rollout.episode_s,
        recovery_s=rollout.recovery_s,
    )
    return Player(recipe.env.name, recipe.env.options, sessions, engine, prompter, sampling, limits)


def make_local_sessions(recipe: Recipe) -> LocalSessions:
    platform = recipe.platform
    bundle = Path(platform.local_bundle).expanduser() if platform.local_bundle else None
    if bundle is not None and not (bundle / "tasks.json").is_file():
        raise RecipeError(
            f"platform.local_bundle {str(bundle)!r} has no tasks.json; the environment's prepare writes it."
        )
    return LocalSessions(platform.local_entry, bundle=bundle, workers=platform.local_workers)


def demo_settings(recipe: Recipe) -> DemoSettings:
    return DemoSettings(
        env=recipe.env.name,
        env_options=recipe.env.options | recipe.warm_start.options,
        method=recipe.warm_start.method,
        arguments=recipe.warm_start.arguments,
        slips=recipe.warm_start.slips,
        max_steps=recipe.rollout.max_turns,
        keep_admissible=recipe.prompt.format == "chat" and recipe.prompt.show_admissible,
        open_s=recipe.platform.wait_s,
        reset_s=recipe.rollout.reset_s,
        step_s=recipe.rollout.step_s,
        plan_s=recipe.warm_start.plan_s,
        outage_s=recipe.platform.outage_s,
    )

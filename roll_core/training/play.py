"""From a recipe to how episodes are played: the machine, the player, sessions, demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roll_core.config import Recipe
from roll_core.engines.base import Engine, SamplingParams
from roll_core.errors import RecipeError
from roll_core.rollout.episode import EpisodeLimits, Player
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.prompting import Prompter
from roll_core.rollout.sessions import LocalSessions, SessionFactory
from roll_core.rollout.tasks import TaskQueue
from roll_core.training.demonstrations import DemoSettings

_CLOSE_MARGIN_S = 30.0


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

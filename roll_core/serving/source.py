"""From a recipe to whoever plays its episodes, with the endpoint that a program needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from roll_core.config import Recipe
from roll_core.engines.base import Engine
from roll_core.models import ChatTemplate, Tokenizer
from roll_core.rollout.episode import Player
from roll_core.rollout.prompting import Prompter, TextRules, TranscriptPrompter
from roll_core.rollout.sessions import SessionFactory
from roll_core.serving.agent import AgentPlayer, Endpoint
from roll_core.serving.app import make_app
from roll_core.serving.doors import EpisodeKeys
from roll_core.serving.programs import Command, Coroutine, Program
from roll_core.serving.rendering import Renderer, TemplateRenderer, TranscriptRenderer
from roll_core.serving.server import serving
from roll_core.training import assembly, play


def make_renderer(recipe: Recipe, tokenizer: Tokenizer) -> Renderer:
    if recipe.prompt.format == "transcript":
        rules = TextRules(recipe.prompt.rules)
        return TranscriptRenderer(tokenizer, TranscriptPrompter(tokenizer, rules), rules)
    template = ChatTemplate.load(assembly.checkpoint_folder(recipe))
    return TemplateRenderer(tokenizer, template, recipe.prompt.end_token)


def make_program(recipe: Recipe) -> Program:
    """Raises RecipeError when there is no such program."""
    agent = recipe.agent
    return Coroutine(agent.entry) if agent.entry else Command(agent.command, agent.environ)


@asynccontextmanager
async def playing(
    recipe: Recipe, sessions: SessionFactory, engine: Engine, prompter: Prompter, tokenizer: Tokenizer
) -> AsyncIterator[Player]:
    """Whoever plays the recipe's episodes; where programs do, the endpoint is served meanwhile.

    Raises RecipeError when the program or the address cannot be had.
    """
    player = play.make_player(recipe, sessions, engine, prompter)
    if recipe.rollout.source == "turns":
        yield player
        return
    agent, program, keys = recipe.agent, make_program(recipe), EpisodeKeys()
    async with serving(make_app(keys, tokenizer, agent.model), agent.host, agent.port) as address:
        yield AgentPlayer(
            player.env,
            player.env_options,
            player.sessions,
            player.engine,
            player.prompter,
            player.sampling,
            player.limits,
            endpoint=Endpoint(f"{address}/v1", keys, make_renderer(recipe, tokenizer), agent.model),
            program=program,
            grace_s=agent.grace_s,
            finish=agent.finish,
        )

"""The policy of a checkpoint at an endpoint of its own, until it is ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from roll_core.engines.base import SamplingParams
from roll_core.errors import RecipeError
from roll_core.serving.app import make_app
from roll_core.serving.doors import OpenDoor
from roll_core.serving.server import is_loopback, serving
from roll_core.serving.session import Bounds, Session
from roll_core.serving.source import make_renderer
from roll_core.training import assembly
from roll_core.training.export import Policy


@dataclass(frozen=True, slots=True)
class Address:
    host: str = "127.0.0.1"
    port: int = 8000
    key: str = ""
    """Whoever asks must know it. Empty: nobody needs one, which is for loopback alone."""


@asynccontextmanager
async def serving_policy(policy: Policy, address: Address, model: str) -> AsyncIterator[str]:
    """Serve ``policy`` under the name ``model`` by the engines of its recipe; yields ``http://HOST:PORT/v1``.

    Raises RecipeError: an address other than loopback without a key, or one that cannot be had.
    """
    if not address.key and not is_loopback(address.host):
        raise RecipeError(
            f"{address.host} can be reached from elsewhere: set a key, or bind 127.0.0.1 and let a tunnel do the rest."
        )
    recipe = policy.recipe
    renderer = make_renderer(recipe, policy.tokenizer)
    engine = assembly.make_engine(recipe, policy.config, policy.weights, policy.tokenizer)
    rollout, context = recipe.rollout, recipe.model.max_context
    sampling = SamplingParams(
        max_tokens=context,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        stop_token_ids=renderer.stop_token_ids,
        stop=() if renderer.stop_token_ids else renderer.stop,
    )
    bounds = Bounds(context, context, rollout.generate_s)

    def make(name: str) -> Session:
        return Session(name or "anonymous", renderer, engine, sampling, bounds, fixed_sampling=False)

    await engine.start()
    try:
        app = make_app(OpenDoor(make, address.key), policy.tokenizer, model)
        async with serving(app, address.host, address.port) as url:
            yield f"{url}/v1"
    finally:
        await engine.close()

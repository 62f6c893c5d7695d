"""`rock run serve`: the policy of a run answers whoever speaks OpenAI's protocol, and says what it says in the run."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import httpx
import pytest

from roll_core.engines.base import SamplingParams
from roll_core.errors import RecipeError
from roll_core.serving.serve import Address, serving_policy
from roll_core.training import assembly
from roll_core.training.export import load_policy


async def greedy(policy, text: str) -> str:
    engine = assembly.make_engine(policy.recipe, policy.config, policy.weights, policy.tokenizer)
    await engine.start()
    try:
        stop = tuple(policy.tokenizer.encode("\n"))
        params = SamplingParams(max_tokens=8, temperature=0.0, stop_token_ids=stop)
        generation = await engine.generate("one", policy.tokenizer.encode(text), params)
        return policy.tokenizer.decode(generation.token_ids).strip()
    finally:
        await engine.close()


def test_what_is_served_is_what_was_trained_and_it_ends_when_told(run, make_recipe, run_directory) -> None:
    recipe = make_recipe(training={"steps": 1}, evaluation={"tasks": 0}, checkpoint={"every_steps": 1})
    run(recipe, run_directory)
    command = [sys.executable, "-m", "rock.cli", "run", "serve", str(run_directory.path), "--port", "0"]
    environ = {**os.environ, "ROCK_SERVE_KEY": "sk-test", "COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            url = said.split()[1].rstrip(":")
            assert "step 1 of test" in said
            body = {"messages": [{"role": "user", "content": "open red"}], "temperature": 0, "max_tokens": 8}
            assert httpx.post(f"{url}/chat/completions", json=body).status_code == 401
            answer = httpx.post(
                f"{url}/chat/completions", json=body, headers={"Authorization": "Bearer sk-test"}, timeout=60
            ).json()
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
    expected = asyncio.run(greedy(load_policy(run_directory), "open red\n>"))
    assert answer["choices"][0]["message"]["content"] == expected
    assert expected

    async def elsewhere() -> None:
        async with serving_policy(load_policy(run_directory), Address("0.0.0.0", 0), "policy"):
            pass

    with pytest.raises(RecipeError, match="set a key"):
        asyncio.run(elsewhere())

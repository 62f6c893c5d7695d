"""A sandbox that is restarted under an episode: its player hears nothing of it, and the episode is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from rock.sdk import Conflict, RockSync, SandboxLost

Serving = Callable[..., AbstractAsyncContextManager[Any]]


def test_an_episode_goes_on_in_the_other_sandbox(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="3", seed=1) as env:
            await env.reset()
            first = await env.step("add 1")
            done = await rock.restart_sandbox(env.sandbox_id, reason="test", wait_s=20)
            second = await env.step("add 1")
            assert (done.outcome, done.replacement) == ("moved", env.sandbox_id)
            assert first.observation != second.observation
            (recovery,) = env.recoveries
            assert (recovery.verdict, recovery.old_sandbox, recovery.steps) == ("resumed", done.sandbox_id, 1)

    asyncio.run(main())


def test_the_blocking_client_forces_what_would_be_refused(serving: Serving) -> None:
    def blocking(url: str) -> None:
        with RockSync(url) as rock, rock.sandbox("toy:1") as sandbox:
            with pytest.raises(Conflict, match="does not recover"):
                rock.restart_sandbox(sandbox.id)
            assert rock.restart_sandbox(sandbox.id, force=True, reason="test").outcome == "lost"
            with pytest.raises(SandboxLost):
                sandbox.run("true")

    async def main() -> None:
        async with serving() as served:
            await asyncio.to_thread(blocking, served.url)

    asyncio.run(main())

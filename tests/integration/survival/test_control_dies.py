"""The control plane is killed: episodes go on, everything is taken over, clients see no error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from rock.sdk import EnvSession, Rock
from rock.wire.models import LeaseView, SandboxView

from .conftest import Site, measured, site, until

POOL = 2


class Stepping:
    """A client that steps without a pause, and checks that each step acted exactly once."""

    def __init__(self, env: EnvSession) -> None:
        self._env = env
        self.steps = 0
        self._stop = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self._env.reset()
        while not self._stop:
            observation, *_ = await self._env.step("inc")
            self.steps += 1
            assert observation == f"{self.steps} of 1000000"
            await asyncio.sleep(0.002)

    async def goes_on(self) -> None:
        before = self.steps

        async def more() -> bool:
            if self._task.done():
                await self._task
            return self.steps > before + 3

        await until(more)

    async def end(self) -> int:
        self._stop = True
        await self._task
        return self.steps


async def ready(rock: Rock) -> list[SandboxView]:
    return [view for view in await rock.sandboxes() if view.state == "ready"]


async def heartbeat(rock: Rock, lease_id: str) -> LeaseView:
    view: LeaseView = await rock._transport.request("POST", f"leases/{lease_id}/heartbeat", kind=LeaseView)
    return view


async def survives(at: Site, kills: int = 1) -> None:
    async with Rock(at.server().url) as rock:

        async def warm() -> list[SandboxView] | None:
            found = await ready(rock)
            return found if len(found) >= POOL else None

        async with rock.env("counter", task="to-1000000", ttl_s=60) as env:
            stepping = Stepping(env)
            await stepping.goes_on()
            lease = env.lease
            for _ in range(kills):
                waiting = {view.id for view in await until(warm)}
                before = at.kill_control()
                began = time.monotonic()
                async with rock.env("counter", task="to-3", wait_s=120) as other:  # asked for while nobody answers
                    claimed_s = time.monotonic() - began
                    beat = await heartbeat(rock, lease.id)
                    heartbeat_s = time.monotonic() - began
                    assert (beat.sandbox_id, beat.epoch) == (lease.sandbox_id, lease.epoch)
                    await other.reset()
                    assert (await other.step("win")).terminated
                    assert other.sandbox_id in waiting  # it came from the warm pool, which was adopted
                after = await at.restarted(before)
                assert (after.url, after.guardian_pid) == (before.url, before.guardian_pid)
                await stepping.goes_on()
                measured(kill_to_claim_s=claimed_s, kill_to_heartbeat_s=heartbeat_s)
            assert env.lease == lease
            steps = await stepping.end()
            assert steps > 0
        restarts = await rock.events(kind="control.restarted")
        assert len(restarts) == kills
        assert all("SIGKILL" in event.detail for event in restarts)
        assert await rock.events(kind="lease.lost") == []
        assert await rock.events(kind="lease.recovering") == []
        assert await until(lambda: nothing_leaked(at))


async def nothing_leaked(at: Site) -> bool:
    return not await at.leaked()


def test_episodes_go_on_while_the_control_plane_is_killed_and_comes_back(on_each: Site) -> None:
    on_each.build()
    on_each.up("--pool", f"counter={POOL}")
    asyncio.run(survives(on_each))


@pytest.fixture
def on_postgres(postgres_url: URL) -> Iterator[Site]:
    yield from site("bubblewrap", postgres_url.set(drivername="postgresql").render_as_string(hide_password=False))


@pytest.mark.bwrap
def test_the_same_with_postgresql(on_postgres: Site) -> None:
    on_postgres.build()
    on_postgres.up("--pool", f"counter={POOL}")
    asyncio.run(survives(on_postgres))


@pytest.mark.slow
def test_it_survives_being_killed_again_and_again(on_each: Site) -> None:
    on_each.build()
    on_each.up("--pool", f"counter={POOL}")
    asyncio.run(survives(on_each, kills=6))

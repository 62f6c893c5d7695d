"""What does not die but hangs, a guardian that is killed, a disk that is full, another platform next door."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from rock.cli._guardian import HUNG_ENV
from rock.sdk import Rock
from rock.sdk.home import ServerFile

from .conftest import Site, fill, site, small_disk, until
from .test_control_dies import Stepping, heartbeat


async def no_loss(rock: Rock) -> None:
    for kind in ("lease.lost", "lease.recovering", "lease.expired"):
        assert await rock.events(kind=kind) == []


def test_a_platform_that_hangs_is_ended_and_started_again_while_episodes_go_on(on_each: Site) -> None:
    on_each._environ[HUNG_ENV] = "8"
    on_each.build()
    on_each.up()

    async def main() -> None:
        async with Rock(on_each.server().url) as rock, rock.env("counter", task="to-1000000", ttl_s=60) as env:
            stepping = Stepping(env)
            await stepping.goes_on()
            lease, before = env.lease, on_each.server()
            os.kill(before.pid, signal.SIGSTOP)
            after = await on_each.restarted(before)
            assert (after.url, after.guardian_pid) == (before.url, before.guardian_pid)
            await stepping.goes_on()
            beat = await heartbeat(rock, lease.id)
            assert (beat.sandbox_id, beat.epoch) == (lease.sandbox_id, lease.epoch)
            (restart,) = await rock.events(kind="control.restarted")
            assert "answered nobody for 8 s and was ended" in restart.detail
            await no_loss(rock)
            await stepping.end()
        log = (on_each.home / "logs" / "server.log").read_text()
        assert "most recent call first" in log  # its stacks

    asyncio.run(main())


def test_a_guardian_that_is_killed_has_a_successor_that_does_its_work(on_each: Site) -> None:
    on_each.build()
    on_each.up()

    async def main() -> None:
        before = on_each.server()

        async def guarded_anew() -> ServerFile | None:
            found = on_each.server()
            return found if found.guardian_pid != before.guardian_pid and found.guarded else None

        async with Rock(before.url) as rock, rock.env("counter", task="to-1000000", ttl_s=60) as env:
            stepping = Stepping(env)
            await stepping.goes_on()
            lease = env.lease
            os.kill(before.guardian_pid, signal.SIGKILL)
            now = await until(guarded_anew)
            (told,) = await until(lambda: rock.events(kind="guardian.restarted"))
            assert f"{before.guardian_pid} died" in told.detail
            assert (now.pid, now.url) == (before.pid, before.url)
            after = await on_each.restarted(on_each.kill_control())
            assert (after.url, after.guardian_pid) == (before.url, now.guardian_pid)
            await stepping.goes_on()
            assert (await heartbeat(rock, lease.id)).sandbox_id == lease.sandbox_id
            await no_loss(rock)
            await stepping.end()

    asyncio.run(main())


@pytest.mark.bwrap
def test_a_disk_that_is_full_when_the_platform_comes_back_costs_nothing_but_time(on_bubblewrap: Site) -> None:
    with small_disk(on_bubblewrap.home, "24m"):
        on_bubblewrap.build()
        on_bubblewrap.up()

        async def main() -> None:
            url = on_bubblewrap.server().url
            async with Rock(url) as rock, rock.env("counter", task="to-1000000", ttl_s=60) as env:
                stepping = Stepping(env)
                await stepping.goes_on()
                lease = env.lease
                junk = fill(on_bubblewrap.home)
                before = on_bubblewrap.kill_control()
                await until(lambda: not_running(before))
                await stepping.goes_on()
                junk.unlink()
                await on_bubblewrap.restarted(before)
                await stepping.goes_on()
                assert (await heartbeat(rock, lease.id)).sandbox_id == lease.sandbox_id
                await no_loss(rock)
                await stepping.end()

        asyncio.run(main())
        on_bubblewrap.end()


async def not_running(server: ServerFile) -> bool:
    return not server.alive


@pytest.fixture
def next_door() -> Iterator[Site]:
    yield from site("docker")


@pytest.mark.docker
def test_another_platform_on_the_same_engine_touches_nothing_of_ours(on_docker: Site, next_door: Site) -> None:
    on_docker.build()
    next_door.build()
    on_docker.up()

    async def main() -> None:
        async with Rock(on_docker.server().url) as rock, rock.env("counter", task="to-9", ttl_s=600) as env:
            await env.reset()
            on_docker.kill_all()  # nobody looks after it, and still it is not the other's
            await asyncio.to_thread(next_door.up, "--pool", "counter=1")
            async with Rock(next_door.server().url) as other, other.env("counter", task="to-9") as theirs:
                await theirs.reset()
                before = next_door.kill_control()
                await next_door.restarted(before)
                assert (await theirs.step("inc")).observation == "1 of 9"
                assert env.sandbox_id not in {view.id for view in await other.sandboxes()}
            await asyncio.to_thread(next_door.end)
            assert (await env.step("inc")).observation == "1 of 9"
            await asyncio.to_thread(on_docker.up)
            async with Rock(on_docker.server().url) as again:
                assert [lease.sandbox_id for lease in await again.leases()] == [env.sandbox_id]
                await no_loss(again)
            assert (await env.step("inc")).observation == "2 of 9"

    asyncio.run(main())

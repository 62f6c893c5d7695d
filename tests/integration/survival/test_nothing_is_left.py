"""Everything is killed at once, two start at once, old files lie about: nothing is left, nothing blocks."""

from __future__ import annotations

import asyncio
import json
import signal

import psutil
import pytest

from rock.sdk import Rock
from rock.sdk.home import runs

from .conftest import Site, until


async def gone(at: Site) -> bool:
    server = at.server()
    return not server.alive and not server.guarded


def test_what_was_killed_whole_is_adopted_by_the_next_start(on_each: Site) -> None:
    on_each.build()
    on_each.up("--pool", "counter=1")

    async def first() -> str:
        async with Rock(on_each.server().url) as rock, rock.env("counter", task="to-9", ttl_s=600) as env:
            await env.reset()
            on_each.kill_all()
            await until(lambda: gone(on_each))
            assert (await env.step("inc")).observation == "1 of 9"  # nobody else is needed for that
            found = on_each.rock("doctor", "--json", code=1).stdout
            assert "without a platform" in found
            await asyncio.to_thread(on_each.up, "--pool", "counter=1")
            assert (await env.step("inc")).observation == "2 of 9"
            async with Rock(on_each.server().url) as again:
                assert [lease.sandbox_id for lease in await again.leases()] == [env.sandbox_id]

                async def clean() -> bool:
                    return not await on_each.leaked()

                await until(clean)
            return env.sandbox_id

    asyncio.run(first())


@pytest.mark.slow
def test_with_everything_dead_guests_end_themselves(on_each: Site) -> None:
    on_each.build()
    on_each.up("--pool", "counter=2")

    async def main() -> None:
        async with Rock(on_each.server().url) as rock:

            async def warm() -> bool:
                return sum(view.state == "ready" for view in await rock.sandboxes()) >= 2

            await until(warm)
        on_each.kill_all()

        async def ended() -> bool:
            return not any(seen.running for seen in await on_each.owned())

        await until(ended)

    asyncio.run(main())


def test_of_two_starts_at_once_one_wins_and_both_say_where(on_fake: Site) -> None:
    racing = [on_fake.begin("up", "-d", "--port", "0", "--runtime", "fake") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in racing]
    server = on_fake.server()
    for process, (out, err) in zip(racing, said, strict=True):
        assert process.returncode == 0, err
        assert server.url in out
    guardians = [p for p in psutil.process_iter(["cmdline"]) if str(on_fake.home) in (p.info["cmdline"] or [])]
    named = [p.pid for p in guardians if "_guardian" in " ".join(p.info["cmdline"])]
    assert named == [server.guardian_pid]


def test_stale_files_block_nothing(on_fake: Site) -> None:
    (on_fake.home / "guardian.lock").write_text("{half")
    (on_fake.home / "server.lock").write_text(json.dumps({"pid": 1, "process_started_s": 0}))
    content = {"pid": 1, "url": "http://127.0.0.1:1", "started_at": "2020-01-01T00:00:00+00:00", "guardian_pid": 1}
    (on_fake.home / "server.json").write_text(json.dumps(content))
    server = on_fake.up()
    assert server.alive
    assert server.guarded


def test_down_while_it_is_being_started_again_ends_both(on_fake: Site) -> None:
    server = on_fake.up()
    on_fake.kill_control()
    on_fake.rock("down")
    assert not runs(server.guardian_pid, server.guardian_started_s)
    assert not (on_fake.home / "server.json").exists()


def test_the_foreground_is_guarded_too_and_ctrl_c_ends_it(on_fake: Site) -> None:
    process = on_fake.begin("up", "--port", "0", "--runtime", "fake")

    async def main() -> None:
        async def serving() -> bool:
            return (on_fake.home / "server.json").exists() and on_fake.server().alive

        await until(serving)
        before = on_fake.kill_control()
        after = await on_fake.restarted(before)
        assert after.url == before.url
        assert after.guardian_pid == process.pid

    asyncio.run(main())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert "SIGKILL" in err
    assert "Traceback" not in err
    assert not (on_fake.home / "server.json").exists()

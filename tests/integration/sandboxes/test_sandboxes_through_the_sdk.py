"""What a sandbox offers its holder, on real runtimes: shells, jobs, archives, ports, pausing, copies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from rock.sdk import Conflict, InvalidRequest, NotFound, Rock, RockSync, Sandbox, SandboxSpec

Work = Callable[[Rock, Sandbox], Awaitable[None]]


def in_a_sandbox(url: str, work: Work) -> None:
    async def main() -> None:
        async with Rock(url) as rock, rock.sandbox() as box:
            await work(rock, box)

    asyncio.run(main())


async def processes(box: Sandbox) -> int:
    return (await box.usage()).processes


def test_shells_are_apart_and_keep_what_they_know(url: str) -> None:
    async def work(_: Rock, box: Sandbox) -> None:
        one, two = box.shell(cwd="/usr", environ={"WHO": "one"}), box.shell()
        await one.run("A=1; cd bin")
        await two.run("A=2")
        assert (await one.run("echo $WHO $A; pwd; exit_code() { return 200; }; exit_code")).exit_code == 200
        assert (await one.run("echo $A; pwd")).output == "1\n/usr/bin\n"
        assert (await two.run("echo $A; pwd")).output == "2\n/tmp\n"
        await one.close()
        assert (await one.run("pwd")).output == "/usr\n"  # a closed one is opened anew

    in_a_sandbox(url, work)


def test_a_line_that_takes_too_long_is_ended_with_all_it_started(url: str) -> None:
    async def work(_: Rock, box: Sandbox) -> None:
        await box.run("cd /usr; export KEPT=yes")
        before = await processes(box)
        result = await box.run("(sleep 300 & sleep 300) & python3 -c 'import time; time.sleep(300)'", timeout_s=0.5)
        assert (result.exit_code, result.timed_out) == (124, True)
        assert await processes(box) == before
        assert (await box.run("pwd; echo $KEPT")).output == "/usr\nyes\n"

    in_a_sandbox(url, work)


def test_a_shell_that_was_left_is_opened_anew(url: str) -> None:
    async def work(_: Rock, box: Sandbox) -> None:
        assert (await box.run("exit 7")).exit_code == 7
        assert (await box.run("echo here")).output == "here\n"

    in_a_sandbox(url, work)


def test_a_terminal_is_answered_to_as_by_a_person(url: str) -> None:
    async def work(_: Rock, box: Sandbox) -> None:
        async with await box.start(["python3", "-q", "-i"], pty=(24, 80)) as job:
            await job.write("import os; print(os.get_terminal_size().columns * 2)\n")
            said = b""
            async for piece in job.output():
                said += piece
                if b"160" in said:
                    await job.write("raise SystemExit(3)\n")
            assert job.exit_code == 3

    in_a_sandbox(url, work)


def test_output_streams_and_no_byte_is_lost(url: str) -> None:
    async def work(_: Rock, box: Sandbox) -> None:
        program = "import os\nfor n in range(64): os.write(1, bytes(range(256)) * 256)\nos.write(2, b'done')"
        async with await box.start(["python3", "-c", program], keep="all", limit_bytes=65536, merge=False) as job:
            found = b"".join([piece async for piece in job.output()])
        assert found == bytes(range(256)) * 256 * 64
        assert (job.exit_code, job.errors, job.lost_bytes) == (0, "done", 0)

    in_a_sandbox(url, work)


def test_directories_and_archives_go_both_ways(url: str, tmp_path: Path) -> None:
    source = tmp_path / "from"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "data").write_bytes(os.urandom(3_000_000))
    (source / "tool").write_text("#!/bin/sh\necho ran\n")
    (source / "tool").chmod(0o755)
    (source / "link").symlink_to("tool")

    async def work(_: Rock, box: Sandbox) -> None:
        await box.upload(source, "/tmp/there")
        assert (await box.run("/tmp/there/link; readlink /tmp/there/link")).output == "ran\ntool\n"
        await box.download("/tmp/there", tmp_path / "back")
        assert (tmp_path / "back/a/b/data").read_bytes() == (source / "a/b/data").read_bytes()
        assert not (tmp_path / "back/link").exists()  # it could point anywhere
        assert await box.upload_tar(box.download_tar("/tmp/there", gzip=True), "/tmp/again") == 5
        assert (await box.run("cmp /tmp/there/a/b/data /tmp/again/a/b/data && /tmp/again/link")).output == "ran\n"
        with pytest.raises(NotFound, match="/tmp/nowhere"):
            await box.download("/tmp/nowhere", tmp_path / "never")

    in_a_sandbox(url, work)


def test_changes_of_files_are_seen(url: str) -> None:
    async def work(_: Rock, box: Sandbox) -> None:
        await box.run("mkdir /tmp/w; cd /tmp/w")
        watching = box.watch("/tmp/w", every_s=0.02)
        first = asyncio.ensure_future(anext(watching))
        writing = asyncio.create_task(box.run("for n in $(seq 200); do echo $n > f$n; sleep 0.02; done", timeout_s=30))
        change = await first
        assert (change.kind, change.path[0]) == ("created", "f")
        await watching.aclose()
        await box.shell().run("true")
        writing.cancel()

    in_a_sandbox(url, work)


SERVER = (
    "import http.server as h; h.ThreadingHTTPServer(('127.0.0.1', 8123), h.SimpleHTTPRequestHandler).serve_forever()"
)


def test_a_port_is_reached_though_there_is_no_network(url: str) -> None:
    import httpx

    async def work(_: Rock, box: Sandbox) -> None:
        data = os.urandom(2_000_000)
        await box.write_file("/tmp/data", data)
        async with await box.start(["python3", "-c", SERVER], cwd="/tmp"), box.forward(8123) as forward:
            address = f"http://127.0.0.1:{forward.local_port}/data"
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = None
                while answer is None:
                    try:
                        answer = await http.get(address)
                    except httpx.TransportError:  # it has not begun to listen
                        assert isinstance(forward.refused, NotFound)
                assert answer.content == data
                both = await asyncio.gather(http.get(address), http.get(address))
                assert [one.content == data for one in both] == [True, True]

    in_a_sandbox(url, work)


def test_a_paused_sandbox_takes_no_time_is_not_lost_and_goes_on(url: str) -> None:
    async def work(_: Rock, box: Sandbox) -> None:
        await box.run("export A=1; cd /usr")
        async with await box.start(["sh", "-c", "while :; do :; done"]):
            assert await box.pause() >= 2
            before = (await box.usage()).cpu_s
            with pytest.raises(Conflict, match="paused"):
                await box.exec(["true"])
            await asyncio.sleep(2.5)  # longer than it takes to find a frozen sandbox
            after = await box.usage()
            assert after.paused
            assert after.cpu_s - before < 0.2
            await box.resume()
        assert (await box.run("echo $A; pwd")).output == "1\n/usr\n"

    in_a_sandbox(url, work)


def test_copies_begin_where_the_original_stood_and_go_their_own_ways(url: str) -> None:
    async def work(rock: Rock, box: Sandbox) -> None:
        data = os.urandom(1_000_000)
        await box.write_file("/tmp/sub/data", data)
        await box.run("export WHERE='a  b'; cd /tmp/sub")
        copies = await box.fork(2)
        try:
            assert len({box.id, *(copy.id for copy in copies)}) == 3
            for number, copy in enumerate(copies):
                assert await copy.read_file("/tmp/sub/data") == data
                assert (await copy.run('pwd; echo "$WHERE"; echo $ROCK_SANDBOX')).output == (
                    f"/tmp/sub\na  b\n{copy.id}\n"
                )
                await copy.run(f"echo {number} > mine")
            assert [await copy.read_file("/tmp/sub/mine") for copy in copies] == [b"0\n", b"1\n"]
            assert (await box.exec(["ls", "/tmp/sub"])).stdout == "data\n"
        finally:
            await asyncio.gather(*(copy.close() for copy in copies))
        assert {lease.sandbox_id for lease in await rock.leases()} == {box.id}
        with pytest.raises(InvalidRequest, match="count is 0"):
            await box.fork(0)

    in_a_sandbox(url, work)


@pytest.mark.docker
def test_a_copy_of_a_writable_root_has_the_whole_root_and_leaves_no_image(on_docker: str) -> None:
    import docker

    async def main() -> str:
        spec = SandboxSpec(image="", read_only=False, user="0:0")
        async with Rock(on_docker) as rock, rock.sandbox(spec=spec) as box:
            await box.run("mkdir /opt/made && echo kept > /opt/made/file && rm -rf /usr/share/doc /etc/issue")
            (copy,) = await box.fork()
            async with AsyncExitStack() as stack:
                stack.push_async_callback(copy.close)
                assert (await copy.run("cat /opt/made/file; ls /etc/issue")).output.startswith("kept\nls:")
                return copy.lease.image

    image = asyncio.run(main())
    assert image.startswith("rock-snapshot:")
    client = docker.from_env()
    try:
        for _ in range(600):
            if not any(image in found.tags for found in client.images.list()):
                return
            asyncio.run(asyncio.sleep(0.1))
        raise AssertionError(f"{image} is still there")
    finally:
        client.close()


def test_the_same_without_an_event_loop(url: str, tmp_path: Path) -> None:
    with RockSync(url) as rock, rock.sandbox() as box:
        shell = box.shell()
        assert shell.run("echo hi").output == "hi\n"
        with box.start(["cat"]) as job:
            job.write("through", eof=True)
            assert b"".join(job.output()) == b"through"
            assert job.exit_code == 0
        box.write_file("/tmp/d/x", "1")
        archive = list(box.download_tar("/tmp/d"))
        assert box.upload_tar(archive, "/tmp/e") == 1
        assert box.read_file("/tmp/e/x") == b"1"
        box.pause()
        assert box.usage().paused
        box.resume()
        (copy,) = box.fork()
        assert copy.read_file("/tmp/e/x") == b"1"
        copy.close()

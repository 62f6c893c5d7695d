"""Jobs, terminals, archives, watching, tunnels, pausing: against a real guest over its socket."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import socket
import tarfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.errors import Conflict, InvalidRequest, NotFound
from rock.guest.jobs import Output
from rock.wire.guest_client import GuestClient


def talk(guest: Any, conversation: Callable[[GuestClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with await GuestClient.connect_unix(guest.socket) as client:
            await conversation(client)

    asyncio.run(main())


async def finish(client: GuestClient, job: str, offset: int = 0) -> tuple[bytes, dict[str, Any]]:
    """What the job prints from ``offset`` to its end, and its last answer."""
    found = b""
    while True:
        value = await client.call("job.read", job=job, offset=offset + len(found), wait_s=30)
        assert value["offset"] == offset + len(found)
        found += base64.b64decode(value["data_b64"])
        if value["ended"]:
            return found, value


async def read_until(client: GuestClient, job: str, wanted: bytes, offset: int = 0) -> bytes:
    found = b""
    while wanted not in found:
        value = await client.call("job.read", job=job, offset=offset + len(found), wait_s=30)
        assert not value["ended"], found
        found += base64.b64decode(value["data_b64"])
    return found


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@given(st.lists(st.binary(max_size=40)), st.integers(1, 30))
def test_a_reader_that_keeps_up_sees_every_byte_once(pieces: list[bytes], limit: int) -> None:
    for keep_all in (True, False):
        output, seen = Output(limit, keep_all), b""
        for piece in pieces:
            for start in range(0, len(piece), limit):
                output.feed(piece[start : start + limit])
                begin, data = output.take(len(seen), 1 << 20)
                assert begin == len(seen)
                seen += data
        assert seen == b"".join(pieces)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 30))
def test_of_what_nobody_reads_the_last_is_kept(pieces: list[bytes], limit: int) -> None:
    output, everything = Output(limit, False), b"".join(pieces)
    for piece in pieces:
        output.feed(piece)
    begin, data = output.take(0, 1 << 20)
    assert data == everything[-limit:] if everything else data == b""
    assert begin == len(everything) - len(data)


def test_output_comes_while_the_program_runs_and_input_goes_to_it(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        text = "echo first; read line; echo got $line; exit 3"
        job = (await client.call("job.start", argv=["sh", "-c", text]))["job"]
        assert await read_until(client, job, b"first\n") == b"first\n"
        await client.call("job.write", job=job, data_b64=b64(b"hello\n"))
        rest, last = await finish(client, job, len(b"first\n"))
        assert (rest, last["exit_code"]) == (b"got hello\n", 3)

    talk(plain_guest, conversation)


def test_any_bytes_pass_both_ways_unchanged(plain_guest: Any) -> None:
    data = bytes(range(256)) * 20_000  # 5 MB: many pipes' worth

    async def conversation(client: GuestClient) -> None:
        job = (await client.call("job.start", argv=["cat"], keep="all", merge=False))["job"]

        async def feed() -> None:
            for start in range(0, len(data), 1 << 20):
                await client.call("job.write", job=job, data_b64=b64(data[start : start + (1 << 20)]))
            await client.call("job.write", job=job, eof=True)

        feeding = asyncio.create_task(feed())
        found, last = await finish(client, job)
        await feeding
        assert found == data
        assert (last["exit_code"], last["stderr"]) == (0, "")

    talk(plain_guest, conversation)


def test_a_program_with_an_unread_archive_waits_and_one_in_the_background_does_not(plain_guest: Any) -> None:
    text = "import sys; sys.stdout.write('x' * 3_000_000); sys.stdout.write('end')"

    async def conversation(client: GuestClient) -> None:
        start = {"argv": ["python3", "-c", text], "limit_bytes": 1000}
        free = (await client.call("job.start", **start))["job"]
        held = (await client.call("job.start", keep="all", **start))["job"]
        value = await client.call("job.read", job=free, offset=3_000_003, wait_s=30)
        assert value["ended"]
        tail = await client.call("job.read", job=free, offset=0)
        assert (tail["offset"], base64.b64decode(tail["data_b64"])) == (3_000_003 - 1000, b"x" * 997 + b"end")
        jobs = {row["job"]: row for row in (await client.call("job.list"))["jobs"]}
        assert jobs[held]["exit_code"] is None
        found, _ = await finish(client, held)
        assert len(found) == 3_000_003

    talk(plain_guest, conversation)


def test_a_job_outlives_the_connection_that_began_it_and_dies_with_its_children_when_closed(plain_guest: Any) -> None:
    started: dict[str, Any] = {}

    async def begin(client: GuestClient) -> None:
        started.update(await client.call("job.start", argv=["sh", "-c", "sleep 300 & echo $!; wait"]))
        started["child"] = int(await read_until(client, started["job"], b"\n"))

    async def end(client: GuestClient) -> None:
        assert psutil.pid_exists(started["child"])
        await client.call("job.close", job=started["job"])
        deadline = time.monotonic() + 10
        while any(psutil.pid_exists(started[name]) for name in ("pid", "child")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        with pytest.raises(NotFound, match="no job"):
            await client.call("job.read", job=started["job"])

    talk(plain_guest, begin)
    talk(plain_guest, end)


def test_a_terminal_has_a_size_echoes_and_takes_ctrl_c(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        job = (await client.call("job.start", argv=["sh"], pty=[30, 100], environ={"PS1": "$ "}))["job"]
        await client.call("job.write", job=job, data_b64=b64(b"stty size; test -t 0 && echo ter''minal\n"))
        said = await read_until(client, job, b"terminal\r\n")
        assert b"30 100" in said
        await client.call("job.resize", job=job, pty=[40, 120])
        await client.call("job.write", job=job, data_b64=b64(b"stty size\n"))
        said += await read_until(client, job, b"40 120", len(said))
        await client.call("job.write", job=job, data_b64=b64(b"sleep 300; echo sl''ept\n"))
        before = (await client.call("job.list"))["jobs"][0]["end"]
        pid = (await client.call("job.list"))["jobs"][0]["pid"]
        deadline = time.monotonic() + 10
        while not any(child.name() == "sleep" for child in psutil.Process(pid).children(recursive=True)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await client.call("job.write", job=job, data_b64=b64(b"\x03"))
        await client.call("job.write", job=job, data_b64=b64(b"exit 5\n"))
        _, last = await finish(client, job, before)
        assert last["exit_code"] == 5

    talk(plain_guest, conversation)


def test_signals_reach_the_whole_group(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        # The child says that it is up: a shell that is signalled before it has one waits for all of its sleep.
        script = "trap 'echo caught; exit 9' TERM; sh -c 'echo up; exec sleep 300'"
        job = await client.call("job.start", argv=["sh", "-c", script])
        await read_until(client, job["job"], b"up\n")
        await client.call("job.signal", job=job["job"], signal="SIGTERM")
        found, last = await finish(client, job["job"], 3)
        assert (b"caught\n" in found, last["exit_code"]) == (True, 9)
        with pytest.raises(InvalidRequest, match="SIGNONE"):
            await client.call("job.signal", job=job["job"], signal="SIGNONE")

    talk(plain_guest, conversation)


@pytest.mark.parametrize("gzip", [False, True])
def test_a_directory_goes_out_and_in_as_one_archive(plain_guest: Any, tmp_path: Path, gzip: bool) -> None:
    source = tmp_path / "from"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (source / "deep" / "run.sh").chmod(0o755)
    (source / "deep" / "er" / "data").write_bytes(os.urandom(3_000_000))
    (source / "empty").mkdir()
    (source / "link").symlink_to("deep/run.sh")

    async def conversation(client: GuestClient) -> None:
        packing = (await client.call("tar.pack", path=str(source), gzip=gzip))["job"]
        archive, last = await finish(client, packing)
        assert last["exit_code"] == 0, last["stderr"]
        with tarfile.open(fileobj=io.BytesIO(archive)) as made:
            assert sorted(made.getnames()) == ["deep", "deep/er", "deep/er/data", "deep/run.sh", "empty", "link"]
        unpacking = (await client.call("tar.unpack", path=str(tmp_path / "to")))["job"]
        for start in range(0, len(archive), 1 << 20):
            await client.call("job.write", job=unpacking, data_b64=b64(archive[start : start + (1 << 20)]))
        await client.call("job.write", job=unpacking, eof=True)
        said, last = await finish(client, unpacking)
        assert (said, last["exit_code"]) == (b"6\n", 0), last["stderr"]

    talk(plain_guest, conversation)
    there = tmp_path / "to"
    assert (there / "deep" / "er" / "data").read_bytes() == (source / "deep" / "er" / "data").read_bytes()
    assert os.access(there / "deep" / "run.sh", os.X_OK)
    assert os.readlink(there / "link") == "deep/run.sh"
    assert (there / "empty").is_dir()


def test_an_archive_that_leads_outside_is_refused(plain_guest: Any, tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))

    async def conversation(client: GuestClient) -> None:
        job = (await client.call("tar.unpack", path=str(tmp_path / "in")))["job"]
        await client.call("job.write", job=job, data_b64=b64(made.getvalue()), eof=True)
        _, last = await finish(client, job)
        assert last["exit_code"] == 1
        assert "'../outside' lies outside" in last["stderr"]

    talk(plain_guest, conversation)
    assert not (tmp_path / "outside").exists()


def test_changes_of_files_are_told(plain_guest: Any, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("1")

    async def conversation(client: GuestClient) -> None:
        job = (await client.call("file.watch", path=str(tmp_path), every_s=0.01))["job"]
        seen = await read_until(client, job, b"\n")
        (tmp_path / "sub").mkdir()
        (tmp_path / "old").write_text("longer")
        seen += await read_until(client, job, b'"old"}\n', len(seen))
        (tmp_path / "old").unlink()
        seen += await read_until(client, job, b'"deleted", "path": "old"}\n', len(seen))
        kinds = [(row["kind"], row["path"]) for row in map(json.loads, seen.splitlines())]
        assert kinds[0] == ("ready", "")
        assert ("created", "sub") in kinds
        assert kinds.index(("modified", "old")) < kinds.index(("deleted", "old"))
        await client.call("job.close", job=job)

    talk(plain_guest, conversation)


def test_a_connection_becomes_one_to_a_port(plain_guest: Any) -> None:
    """Large, both ways at once, with the end of one way passed on."""
    data = os.urandom(3_000_000)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())  # to the end that the other side gives
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            reader, writer = await asyncio.open_unix_connection(plain_guest.socket)
            writer.write(json.dumps({"id": 1, "op": "tunnel", "port": port}).encode() + b"\n")
            assert json.loads(await reader.readline())["ok"]
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data
            writer.close()

    asyncio.run(main())


def test_a_port_nobody_listens_on_is_named(plain_guest: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

        async def conversation(client: GuestClient) -> None:
            with pytest.raises(NotFound, match=f"nothing listens on port {port}"):
                await client.call("tunnel", port=port)
            assert (await client.call("exec", argv=["true"]))["exit_code"] == 0  # the connection is as it was

        talk(plain_guest, conversation)


def test_a_paused_sandbox_stands_still_answers_probes_and_goes_on(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        await client.call("env.reset", seq=0)
        text = "n=0; while :; do n=$((n+1)); echo $n; done"
        job = await client.call("job.start", argv=["sh", "-c", text], limit_bytes=1000)
        await read_until(client, job["job"], b"\n")
        paused = await client.call("pause")
        assert paused["processes"] >= 2
        assert psutil.Process(job["pid"]).status() == psutil.STATUS_STOPPED
        for _ in range(3):  # more often than it takes to find a stopped environment
            assert (await client.call("ping"))["env"] == "ready"
        with pytest.raises(Conflict, match=r"paused, so exec"):
            await client.call("exec", argv=["true"])
        assert (await client.call("usage"))["paused"] is True
        end = {row["job"]: row["end"] for row in (await client.call("job.list"))["jobs"]}[job["job"]]
        await client.call("resume")
        more = await client.call("job.read", job=job["job"], offset=end, wait_s=30)
        assert more["offset"] >= end
        assert more["data_b64"]
        assert (await client.call("env.step", seq=1, action="go"))["observation"] == "1: go"

    talk(toy_guest, conversation)


def test_usage_counts_processes_processor_time_and_memory(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        before = await client.call("usage")
        await client.call("exec", argv=["python3", "-c", "sum(range(20_000_000))"])
        await client.call("job.start", argv=["sleep", "300"])
        after = await client.call("usage")
        assert after["cpu_s"] > before["cpu_s"]
        assert after["processes"] == before["processes"] + 1
        assert after["rss_bytes"] > 1 << 20
        assert after["disks"]["/tmp"]["total_bytes"] >= after["disks"]["/tmp"]["used_bytes"] > 0

    talk(plain_guest, conversation)


def test_an_interrupted_command_leaves_the_shell_usable(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        shell = (await client.call("shell.open"))["shell"]
        await client.call("shell.run", shell=shell, command="cd /; export A=kept")
        marker = Path(plain_guest.directory, "began")
        running = asyncio.create_task(client.call("shell.run", shell=shell, command=f": > {marker}; sleep 300"))
        deadline = time.monotonic() + 10
        while not marker.exists():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await client.call("shell.interrupt", shell=shell)
        ended = await running
        assert (ended["timed_out"], ended["shell_lost"]) == (True, False)
        assert (await client.call("shell.run", shell=shell, command="pwd; echo $A"))["output"] == "/\nkept\n"

    talk(plain_guest, conversation)

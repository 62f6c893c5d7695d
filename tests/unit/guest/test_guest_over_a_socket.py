"""Every operation of a real guest, over its socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rock.domain import errors
from rock.domain.errors import Conflict, InvalidAction, InvalidRequest, NotFound, SandboxLost, StaleEpoch
from rock.guest import keeper
from rock.wire.guest_client import GuestClient


def talk(guest: Any, conversation: Any) -> None:
    async def main() -> None:
        async with await GuestClient.connect_unix(guest.socket) as client:
            await conversation(client)

    asyncio.run(main())


async def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def until_async(condition: Any, what: str) -> None:
    deadline = asyncio.get_running_loop().time() + 20.0
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.01)


async def until_env(client: GuestClient, state: str) -> dict[str, Any]:
    """The ping that first says so."""
    deadline = asyncio.get_running_loop().time() + 20.0
    while (ping := await client.call("ping"))["env"] != state:
        assert asyncio.get_running_loop().time() < deadline, ping
        await asyncio.sleep(0.01)
    return ping  # type: ignore[no-any-return]


async def reset(client: GuestClient, task: str = "t", seq: int = 0) -> Any:
    return await client.call("env.reset", seq=seq, task=task, seed=3, options={"a": 1})


# --- the environment --------------------------------------------------------------------------------------------------


def test_an_episode_is_played_to_its_end(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        began = await reset(client)
        assert began["observation"] == {"task": "t", "seed": 3}
        assert began["info"]["options"] == {"a": 1}
        assert await client.call("env.step", seq=1, action="go") == {
            "observation": "1: go",
            "reward": 0.5,
            "terminated": False,
            "truncated": False,
            "info": {"steps": 1},
        }
        assert (await client.call("env.step", seq=2, action="end"))["terminated"]
        with pytest.raises(InvalidAction, match="over"):
            await client.call("env.step", seq=3, action="go")
        assert (await client.call("ping"))["env"] == "ready"
        assert (await client.call("env.call", method="echo", args={"x": 1})) == {"value": {"x": 1}}

    talk(toy_guest, conversation)


def test_a_repeated_step_acts_once(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        await reset(client)
        first = await client.call("env.step", seq=1, action="go")
        assert await client.call("env.step", seq=1, action="go") == first
        async with await GuestClient.connect_unix(toy_guest.socket) as other:
            slow = [asyncio.create_task(one.call("env.step", seq=2, action="sleep 0.2")) for one in (client, other)]
            answers = await asyncio.gather(*slow)
        assert answers[0] == answers[1]
        assert answers[0]["info"] == {"steps": 2}
        with pytest.raises(Conflict):
            await client.call("env.step", seq=1, action="go")
        with pytest.raises(Conflict):
            await client.call("env.step", seq=9, action="go")

    talk(toy_guest, conversation)


@pytest.mark.parametrize("action", ["raise", "nan", "unserialisable", "short"])
def test_what_the_environment_gets_wrong_is_an_environment_error(toy_guest: Any, action: str) -> None:
    async def conversation(client: GuestClient) -> None:
        await reset(client)
        with pytest.raises(errors.EnvironmentError) as raised:
            await client.call("env.step", seq=1, action=action)
        assert "Traceback" in raised.value.cause
        with pytest.raises(errors.EnvironmentError):
            await client.call("env.step", seq=2, action="go")
        assert (await reset(client))["observation"]["task"] == "t"

    talk(toy_guest, conversation)


def test_the_guest_outlives_its_environment(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        pid = (await reset(client))["info"]["pid"]
        with pytest.raises(SandboxLost) as lost:
            await client.call("env.step", seq=1, action="exit 3")
        assert "env process exited with code 3" in lost.value.cause
        ping = await client.call("ping")
        assert (ping["env"], ping["env_deaths"]) in (("loading", 1), ("ready", 1))
        assert "exited with code 3" in ping["env_cause"]
        for _ in range(2):  # whether the new process is loaded yet or not
            with pytest.raises(SandboxLost):
                await client.call("env.step", seq=2, action="go")
            with pytest.raises(SandboxLost, match="process is gone"):
                await client.call("env.call", method="echo", args={})
            await until_env(client, "ready")
        assert (await reset(client))["info"]["pid"] != pid
        assert (await client.call("hello"))["env"] == "ready"

    talk(toy_guest, conversation)


def test_an_environment_killed_between_two_steps_is_noticed(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        pid = (await reset(client))["info"]["pid"]
        os.kill(pid, 9)
        await until(lambda: not psutil.pid_exists(pid), "it is reaped")
        with pytest.raises(SandboxLost) as lost:
            await client.call("env.step", seq=1, action="go")
        assert "signal 9" in lost.value.cause

    talk(toy_guest, conversation)


def test_an_environment_that_dies_idle_is_loaded_again_before_it_is_asked_for(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        await until_env(client, "ready")
        (child,) = psutil.Process(toy_guest.process.pid).children()
        child.kill()

        async def died() -> bool:
            return bool((await client.call("ping")).get("env_deaths"))

        await until_async(died, "the guest has noticed")
        assert (await until_env(client, "ready"))["env_deaths"] == 1
        assert await client.call("env.call", method="echo", args={"a": 1}) == {"value": {"a": 1}}  # nothing was lost
        assert (await reset(client))["info"]["pid"] != child.pid

    talk(toy_guest, conversation)


def test_a_stopped_environment_is_ended_and_started_anew(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        pid = (await reset(client))["info"]["pid"]
        stepping = asyncio.create_task(client.call("env.step", seq=1, action="sleep 1000"))
        os.kill(pid, signal.SIGSTOP)

        async def died() -> bool:
            return "something had stopped it" in (await client.call("ping")).get("env_cause", "")

        await until_async(died, "the guest has ended it")
        with pytest.raises(SandboxLost):
            await stepping
        await reset(client)

    talk(toy_guest, conversation)


def test_one_that_dies_again_and_again_stays_dead_until_a_reset(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        for _ in range(keeper.MAX_RESTARTS + 1):
            await reset(client)
            with pytest.raises(SandboxLost):
                await client.call("env.step", seq=1, action="exit 1")
        assert (await client.call("ping"))["env"] == "dead"
        await reset(client)

    talk(toy_guest, conversation)


def test_what_the_environment_prints_never_reaches_the_protocol(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        await reset(client)
        assert (await client.call("env.step", seq=1, action="print"))["observation"] == "1: print"
        lines: list[str] = []
        for _ in range(200):
            lines = (await client.call("log", lines=50))["lines"]
            if "from a child" in lines:
                break
            await asyncio.sleep(0.01)
        assert {'{"id": 1, "ok": true}', "noise", "from a child"} <= set(lines)

    talk(toy_guest, conversation)


def test_unknown_tasks_and_methods_are_the_callers_mistake(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        with pytest.raises(NotFound, match="missing"):
            await reset(client, "missing")
        with pytest.raises(errors.EnvironmentError):
            await reset(client, "bug")
        with pytest.raises(NotFound, match="nothing"):
            await client.call("env.call", method="nothing", args={})

    talk(toy_guest, conversation)


def test_an_environment_that_cannot_be_made_says_why_at_the_reset(broken_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        with pytest.raises(errors.EnvironmentError) as raised:
            await reset(client)
        assert "cannot be made" in raised.value.cause

    talk(broken_guest, conversation)


def test_closing_ends_the_environment_in_order(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        pid = (await reset(client))["info"]["pid"]
        await client.call("env.step", seq=1, action="child 1000")
        children = psutil.Process(pid).children()
        await client.call("env.close")
        assert not psutil.pid_exists(pid)
        await until(lambda: not any(child.is_running() for child in children), "its children are gone")
        assert "closed in order" in (await client.call("log"))["lines"]
        assert (await client.call("hello"))["env"] == "none"
        await reset(client)

    talk(toy_guest, conversation)


def test_a_slow_step_keeps_nobody_else_waiting(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        await reset(client)
        step = asyncio.create_task(client.call("env.step", seq=1, action="sleep 0.5"))
        await asyncio.sleep(0)
        began = time.monotonic()
        busy = 0.0
        while not busy:
            busy = (await client.call("ping"))["busy_s"]
        assert time.monotonic() - began < 0.4
        assert not step.done()
        with pytest.raises(Conflict, match="still runs"):
            await client.call("env.step", seq=2, action="go")
        await step

    talk(toy_guest, conversation)


def test_an_older_epoch_is_refused(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        await client.call("bind", epoch=2)
        with pytest.raises(StaleEpoch):
            await client.call("env.reset", epoch=1, seq=0, task="t", seed=0)
        with pytest.raises(StaleEpoch):
            await client.call("bind", epoch=1)
        await client.call("env.reset", epoch=2, seq=0, task="t", seed=0)
        assert (await client.call("hello"))["epoch"] == 2

    talk(toy_guest, conversation)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_exec_keeps_outputs_and_codes_apart(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        value = await client.call("exec", argv=["sh", "-c", "echo out; echo err >&2; exit 7"])
        assert (value["exit_code"], value["stdout"], value["stderr"]) == (7, "out\n", "err\n")
        value = await client.call("exec", argv=["cat"])
        assert value["stdout"] == ""
        raw = bytes(range(256)) * 1000
        value = await client.call("exec", argv=["sha256sum"], stdin_b64=base64.b64encode(raw).decode())
        import hashlib

        assert value["stdout"].split()[0] == hashlib.sha256(raw).hexdigest()
        value = await client.call("exec", argv=["sh", "-c", "echo $A; pwd"], environ={"A": "b c"}, cwd="/usr")
        assert value["stdout"] == "b c\n/usr\n"
        assert (await client.call("exec", argv=["sh", "-c", "kill -9 $$"]))["exit_code"] == 137
        with pytest.raises(NotFound, match="no-such-program"):
            await client.call("exec", argv=["no-such-program"])

    talk(plain_guest, conversation)


def test_much_output_neither_hangs_nor_grows(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        argv = ["sh", "-c", "head -c 8000000 /dev/zero | tr '\\0' a; head -c 8000000 /dev/zero | tr '\\0' b >&2"]
        value = await client.call("exec", argv=argv, max_output_bytes=16 << 20)
        assert (len(value["stdout"]), len(value["stderr"]), value["truncated"]) == (8_000_000, 8_000_000, False)
        value = await client.call("exec", argv=argv, max_output_bytes=1000)
        assert value["truncated"]
        assert len(value["stdout"]) < 1100
        assert "7999000 bytes left out" in value["stdout"]

    talk(plain_guest, conversation)


def test_a_time_out_kills_all_that_the_program_started(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        value = await client.call("exec", argv=["sh", "-c", "sleep 987 & sleep 987; echo no"], work_s=0.2)
        assert (value["exit_code"], value["timed_out"]) == (124, True)
        assert value["duration_s"] < 5
        await until(lambda: not children_named(plain_guest, "sleep"), "no sleep is left")

    talk(plain_guest, conversation)


def test_a_background_child_does_not_hold_a_program_up(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        value = await client.call("exec", argv=["sh", "-c", "sleep 30 & echo done"], work_s=10.0)
        assert (value["stdout"], value["timed_out"]) == ("done\n", False)
        assert value["duration_s"] < 5

    talk(plain_guest, conversation)


def test_an_exec_ends_with_its_connection(plain_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        async with await GuestClient.connect_unix(plain_guest.socket) as other:
            running = asyncio.create_task(other.call("exec", argv=["sleep", "976"]))
            await until(lambda: children_named(plain_guest, "sleep"), "it runs")
        with pytest.raises(SandboxLost):
            await running
        await until(lambda: not children_named(plain_guest, "sleep"), "it is gone")

    talk(plain_guest, conversation)


def children_named(guest: Any, name: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(guest.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == name and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_come_back_as_they_went(plain_guest: Any) -> None:
    raw = os.urandom(3_000_000)

    async def conversation(client: GuestClient) -> None:
        path = str(plain_guest.directory / "deep" / "er" / "file.bin")
        halves = [raw[:2_000_000], raw[2_000_000:]]
        for number, half in enumerate(halves):
            data = base64.b64encode(half).decode()
            value = await client.call("file.write", path=path, data_b64=data, append=number > 0, mode=0o640)
        assert value == {"size_bytes": len(raw)}
        assert Path(path).read_bytes() == raw
        assert os.stat(path).st_mode & 0o777 == 0o640
        back, eof = b"", False
        while not eof:
            piece = await client.call("file.read", path=path, offset=len(back), length=1_000_000)
            back, eof = back + base64.b64decode(piece["data_b64"]), piece["eof"]
        assert back == raw
        (entry,) = (await client.call("file.list", path=str(Path(path).parent)))["entries"]
        assert (entry["name"], entry["kind"], entry["size_bytes"]) == ("file.bin", "file", len(raw))
        with pytest.raises(NotFound):
            await client.call("file.read", path="/no/such/file")
        with pytest.raises(InvalidRequest):
            await client.call("file.read", path="/")
        with pytest.raises(InvalidRequest, match="base64"):
            await client.call("file.write", path=path, data_b64="***")

    talk(plain_guest, conversation)


# --- the protocol itself ----------------------------------------------------------------------------------------------


def test_nonsense_is_answered_and_harms_nobody(plain_guest: Any) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(plain_guest.socket)
        raw.sendall(b'nonsense\n[1]\n{"id": 1}\n{"id": 2, "op": "file.read"}\n{"id": "x", "op": "ping"}\n')
        answers = [json.loads(line) for line in _lines(raw, 5)]
    assert [answer["ok"] for answer in answers] == [False, False, False, False, True]
    assert {answer["error"]["type"] for answer in answers[:4]} == {"urn:rock:invalid-request"}
    assert answers[4]["id"] == "x"


def _lines(raw: socket.socket, count: int) -> list[bytes]:
    raw.settimeout(10.0)
    data = b""
    while data.count(b"\n") < count:
        data += raw.recv(1 << 16)
    return data.splitlines()


def test_requests_come_in_pieces_and_in_heaps(plain_guest: Any) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(plain_guest.socket)
        request = b'{"id": 1, "op": "ping"}\n'
        for index in range(len(request)):
            raw.sendall(request[index : index + 1])
        raw.sendall(request * 500)
        assert len(_lines(raw, 501)) == 501


def test_shutdown_and_sigterm_leave_no_process(toy_guest: Any) -> None:
    async def conversation(client: GuestClient) -> None:
        await reset(client)
        shell = (await client.call("shell.open"))["shell"]
        await client.call("shell.run", shell=shell, command="sleep 965 &")
        children = psutil.Process(toy_guest.process.pid).children(recursive=True)
        assert len(children) >= 3
        await client.call("shutdown")
        await asyncio.to_thread(toy_guest.process.wait, 10.0)
        await until(lambda: not any(child.is_running() for child in children), "nothing is left")

    talk(toy_guest, conversation)
    assert toy_guest.process.returncode == 0


def test_sigterm_ends_the_guest_in_order(toy_guest: Any) -> None:
    children: list[psutil.Process] = []

    async def conversation(client: GuestClient) -> None:
        await reset(client)
        children.extend(psutil.Process(toy_guest.process.pid).children(recursive=True))

    talk(toy_guest, conversation)
    toy_guest.process.terminate()
    assert toy_guest.process.wait(10.0) == 0
    assert not any(child.is_running() for child in children)

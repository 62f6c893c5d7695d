"""SWE-ReX's own client on our sandboxes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("swerex")
from swerex import exceptions
from swerex.runtime import abstract as rex
from swerex.runtime.remote import RemoteRuntime

pytestmark = pytest.mark.bwrap
TOKEN = "a-token"


@contextmanager
def ours(url: str) -> Iterator[str]:
    argv = [sys.executable, "-m", "rock.cli", "sandbox", "swerex", "--port", "0", "--auth-token", TOKEN]
    with subprocess.Popen(argv, env=os.environ | {"ROCK_URL": url}, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0]
            _wait_until_it_listens(int(address.rpartition(":")[2]))
            yield address
        finally:
            process.terminate()


def _wait_until_it_listens(port: int) -> None:
    """It says where it will listen a moment before it does."""
    until_s = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        else:
            return


async def script(address: str, folder: Path, root: str) -> list[Any]:
    """What an agent does; what it sees."""
    runtime = RemoteRuntime(host=address.rpartition(":")[0], port=int(address.rpartition(":")[2]), auth_token=TOKEN)
    await runtime.wait_until_alive(timeout=60)
    seen: list[Any] = []

    async def note(work: Any) -> None:
        try:
            value = (await work).model_dump()
            if "output" in value:  # a runtime may end it with a line or not
                value["output"] = value["output"].replace("\r", "").strip()
            seen.append({name: value[name] for name in value if name not in {"expect_string"}})
        except Exception as error:  # noqa: BLE001 - whatever the client raises is what is compared
            seen.append(type(error))

    def run(command: str, **how: Any) -> Any:
        return runtime.run_in_session(rex.BashAction(command=command, **how))

    await note(runtime.create_session(rex.CreateBashSessionRequest(startup_timeout=5)))
    await note(runtime.create_session(rex.CreateBashSessionRequest()))
    await note(run(f"mkdir -p {root}; cd {root}; export A=1", timeout=20))
    await note(run("pwd; echo $A", timeout=20))
    await note(run("(exit 3)", check="silent", timeout=20))
    await note(run("(exit 3)", timeout=20))
    await note(run("echo ignored", check="ignore", timeout=20))
    await note(run("if then", timeout=20))
    await note(run("pwd", session="other"))
    await note(runtime.execute(rex.Command(command="echo out; echo err >&2; exit 4", shell=True)))
    await note(runtime.execute(rex.Command(command=["sh", "-c", "echo e >&2"], merge_output_streams=True)))
    await note(runtime.execute(rex.Command(command=["false"], check=True)))
    await note(runtime.execute(rex.Command(command=["sleep", "30"], timeout=0.3)))
    await note(runtime.execute(rex.Command(command=["no-such-program"])))
    await note(runtime.write_file(rex.WriteFileRequest(path=f"{root}/deep/file", content="täxt\n")))
    await note(runtime.read_file(rex.ReadFileRequest(path=f"{root}/deep/file")))
    await note(runtime.read_file(rex.ReadFileRequest(path=f"{root}/nowhere")))
    await note(runtime.upload(rex.UploadRequest(source_path=str(folder), target_path=f"{root}/up")))
    await note(runtime.upload(rex.UploadRequest(source_path=str(folder / "one"), target_path=f"{root}/single")))
    await note(run(f"cat {root}/up/one {root}/up/sub/two {root}/single", timeout=20))
    await note(run("sleep 30", timeout=0.5))
    await note(runtime.close_session(rex.CloseBashSessionRequest()))
    await note(runtime.close_session(rex.CloseBashSessionRequest()))
    await note(runtime.close())
    return seen


def said(output: str, code: int | None = 0) -> dict[str, Any]:
    return {"output": output, "exit_code": code, "failure_reason": "", "session_type": "bash"}


def test_an_agent_sees_what_it_would_see_of_a_runtime_of_its_own(on_bubblewrap: str, tmp_path: Path) -> None:
    """Written out: SWE-ReX's own server misses exit codes on a busy machine, so it cannot be asked here."""
    folder = tmp_path / "up"
    (folder / "sub").mkdir(parents=True)
    (folder / "one").write_text("1\n")
    (folder / "sub" / "two").write_text("2\n")
    root = f"/tmp/rex-{os.getpid()}"
    with ours(on_bubblewrap) as address:
        seen = asyncio.run(script(address, folder, root))
    assert seen == [
        {"output": "", "session_type": "bash"},
        exceptions.SessionExistsError,
        said(""),
        said(f"{root}\n1"),
        said("", 3),
        exceptions.NonZeroExitCodeError,
        said("ignored", None),
        exceptions.BashIncorrectSyntaxError,
        exceptions.SessionDoesNotExistError,
        {"stdout": "out\n", "stderr": "err\n", "exit_code": 4},
        {"stdout": "e\n", "stderr": "", "exit_code": 0},
        exceptions.NonZeroExitCodeError,
        exceptions.CommandTimeoutError,
        FileNotFoundError,
        {},
        {"content": "täxt\n"},
        FileNotFoundError,
        {},
        {},
        said("1\n2\n1"),
        exceptions.CommandTimeoutError,
        {"session_type": "bash"},
        exceptions.SessionDoesNotExistError,
        {},
    ]
    assert not os.path.exists(root)  # it was all in the sandbox


def test_a_session_is_usable_after_a_command_that_took_too_long(on_bubblewrap: str) -> None:
    async def main(address: str) -> None:
        runtime = RemoteRuntime(host="http://127.0.0.1", port=int(address.rpartition(":")[2]), auth_token=TOKEN)
        await runtime.create_session(rex.CreateBashSessionRequest())
        with pytest.raises(exceptions.CommandTimeoutError, match=r"timeout after 0\.3 seconds"):
            await runtime.run_in_session(rex.BashAction(command="sleep 30", timeout=0.3))
        assert (await runtime.run_in_session(rex.BashAction(command="echo on", timeout=9))).output == "on\n"

    with ours(on_bubblewrap) as address:
        asyncio.run(main(address))


def test_another_token_is_refused(on_bubblewrap: str) -> None:
    async def main(address: str) -> bool:
        runtime = RemoteRuntime(host="http://127.0.0.1", port=int(address.rpartition(":")[2]), auth_token="wrong")
        return bool(await runtime.is_alive())

    with ours(on_bubblewrap) as address:
        assert asyncio.run(main(address)) is False

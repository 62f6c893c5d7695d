"""The command line as people meet it: what it prints, how it exits, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from rock.sdk.home import read_server

Rock = Callable[..., subprocess.CompletedProcess[str]]
COUNTER = Path(__file__).parents[2] / "fixtures" / "envs"
FAKE = ("--runtime", "fake", "--port", "0")


def server(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "server.json").read_text())
    return found


def up(rock: Rock, *arguments: str) -> str:
    return rock("up", "-d", *FAKE, *arguments).stdout


def altered(arguments: Sequence[str], *lines: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which ``lines`` of Python were run before."""
    script = ["import sys", f"sys.argv = {['rock', *arguments]!r}", *lines, "from rock.cli.main import main", "main()"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def in_the_foreground(until: Callable[[], Any]) -> subprocess.Popen[str]:
    """``rock up``, as soon as ``until`` is true."""
    argv = [sys.executable, "-m", "rock.cli", "up", *FAKE]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['rock', '--help']\n"
        "from rock.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'streamlit', 'fastapi', 'sqlalchemy', 'docker', 'httpx', 'roll_core', 'dashboard'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    begin = psutil.Process().cpu_times()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    end = psutil.Process().cpu_times()
    assert "HEAVY []" in done.stdout
    for name in ("up", "down", "ps", "logs", "exec", "sandbox", "env", "image", "doctor", "version", "train"):
        assert f" {name} " in done.stdout, name
    # Processor time, because the machine may be busy with other tests.
    used_s = (end.children_user - begin.children_user) + (end.children_system - begin.children_system)
    assert used_s < 1.0


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("up", "--port", "70000"), ("up", "--pool", "x"), ("up", "--runtime", "vm"), ("exec", "sb-1")],
)
def test_usage_errors_exit_with_2(rock: Rock, arguments: tuple[str, ...]) -> None:
    assert rock(*arguments, code=2).stderr


def test_up_ps_exec_rm_down(rock: Rock, rock_process: Rock, rock_home: Path) -> None:
    assert "runtime fake" in up(rock_process)
    created = rock_process("sandbox", "create", "any:1").stdout.strip()
    done = rock_process("exec", created, "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert created in rock("ps").stdout
    views = json.loads(rock("ps", "--json").stdout)
    assert [(view["id"], view["state"]) for view in views] == [(created, "leased")]
    assert json.loads(rock("sandbox", "inspect", created, "--json").stdout)["spec"]["image"] == "any:1"
    assert "leased" in rock("sandbox", "inspect", created).stdout
    rock("logs", created)
    assert "serving" in rock("logs").stdout
    assert "does not recover" in rock("sandbox", "restart", created, code=1).stderr
    rock("sandbox", "rm", created)
    assert json.loads(rock("ps", "--json").stdout) == []
    running = read_server(rock_home)
    assert running is not None
    assert running.alive
    rock_process("down")
    assert not running.alive
    assert not (rock_home / "server.json").exists()
    assert "nothing runs" in rock("down").stdout


def test_up_twice_says_what_runs(rock: Rock, rock_home: Path) -> None:
    up(rock)
    first = server(rock_home)
    again = rock("up", "-d", *FAKE).stdout
    assert first["url"] in again
    assert str(first["pid"]) in again
    assert server(rock_home) == first


def test_a_killed_platform_blocks_nothing_and_is_told_of(rock: Rock, rock_home: Path) -> None:
    up(rock)
    first = server(rock_home)
    for pid in (first["guardian_pid"], first["pid"]):
        os.kill(pid, signal.SIGKILL)
    found = read_server(rock_home)
    assert found is not None
    deadline = time.monotonic() + 10
    while found.alive or found.guarded:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    told = rock("ps", code=1).stderr
    assert "without having been stopped" in told
    assert "rock up -d" in told
    up(rock)
    assert server(rock_home)["pid"] != first["pid"]


def test_a_recycled_pid_is_not_taken_for_the_platform(rock: Rock, rock_home: Path) -> None:
    content = {"pid": os.getpid(), "url": "http://127.0.0.1:1", "started_at": "2020-01-01T00:00:00+00:00"}
    (rock_home / "server.json").write_text(json.dumps(content))
    up(rock)
    assert server(rock_home)["pid"] != os.getpid()
    rock("down")
    assert psutil.pid_exists(os.getpid())


def test_a_taken_port_is_named_and_leaves_nothing(rock: Rock, rock_process: Rock, rock_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments in (("up",), ("up", "-d")):
            told = rock_process(*arguments, "--runtime", "fake", "--port", str(port), code=1).stderr
            assert f"Port {port}" in told
            assert "--port" in told
    assert not (rock_home / "server.json").exists()


def test_without_a_platform_the_way_out_is_named(rock: Rock) -> None:
    for arguments in (("ps",), ("exec", "sb-1", "ls"), ("sandbox", "create", "x")):
        told = rock("--url", "http://127.0.0.1:9", *arguments, code=1).stderr
        assert "http://127.0.0.1:9" in told
        assert "rock up" in told


def test_another_directorys_platform_is_not_taken_for_its_own(rock: Rock, rock_home: Path) -> None:
    up(rock)
    elsewhere = {"ROCK_HOME": str(rock_home / "other")}
    told = rock("ps", code=1, env=elsewhere).stderr
    assert elsewhere["ROCK_HOME"] in told
    assert "rock up -d" in told
    rock("ps", env={**elsewhere, "ROCK_URL": server(rock_home)["url"]})


def test_a_wrong_address_is_an_error_with_the_right_form(rock: Rock) -> None:
    assert "http://host:port" in rock("--url", "nonsense", "ps", code=1).stderr


def test_what_does_not_exist_is_named(rock: Rock) -> None:
    up(rock)
    assert "sb-0000000000" in rock("sandbox", "inspect", "sb-0000000000", code=1).stderr
    assert "sb-0000000000" in rock("sandbox", "rm", "sb-0000000000", code=1).stderr
    nearest = {"ROCK_ENV_PATH": str(COUNTER)}
    for arguments in (("env", "tasks", "countr"), ("env", "build", "countr"), ("env", "check", "countr")):
        assert "'counter'" in rock(*arguments, code=1, env=nearest).stderr
    assert "alfworld" in rock("sandbox", "create", "--env", "alfwrld", code=1).stderr


def test_a_key_is_asked_for(rock: Rock) -> None:
    rock("up", "-d", *FAKE, env={"ROCK_KEY": "secret"})
    assert "ROCK_KEY" in rock("ps", code=1).stderr
    rock("ps", env={"ROCK_KEY": "secret"})


def test_an_open_door_without_a_key_is_refused(rock: Rock, rock_home: Path) -> None:
    told = " ".join(rock("up", *FAKE, "--host", "0.0.0.0", code=2, env={"ROCK_KEY": ""}).stderr.split())
    assert "ROCK_KEY" in told
    assert "rock key create" in told
    assert not (rock_home / "rock.db").exists()


def test_docker_without_permission_is_explained(rock: Rock, rock_home: Path) -> None:
    nobody = {"DOCKER_HOST": f"unix://{rock_home}/no.sock"}
    told = rock("up", "-d", "--port", "0", "--runtime", "docker", code=1, env=nobody).stderr
    assert "Docker" in told
    assert "no.sock" in told or "not installed" in told
    found = {row["name"]: row for row in json.loads(rock("doctor", "--json", code=None, env=nobody).stdout)}
    assert found["docker"]["verdict"] != "ok"
    assert found["docker"]["remedy"]


def test_a_full_disk_is_a_storage_error(rock: Rock, rock_home: Path) -> None:
    """RLIMIT_FSIZE makes every larger write fail, as a full disk does."""
    done = altered(
        ("up", "--runtime", "fake", "--port", "0"),
        "import resource, signal",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
        code=1,
    )
    assert "Error: " in done.stderr
    assert "space" in done.stderr


def test_ctrl_c_in_the_foreground_stops_in_order(rock_home: Path) -> None:
    process = in_the_foreground((rock_home / "server.json").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode in {0, 130}
    assert not (rock_home / "server.json").exists()


def test_doctor_lists_what_nobody_looks_after_and_down_removes_it(rock: Rock, rock_home: Path) -> None:
    def leftovers() -> list[dict[str, str]]:
        """Of ours: others may run on this machine, and have died here."""
        rows = json.loads(rock("doctor", "--json", code=None).stdout)
        found = [row for row in rows if row["name"] == "leftovers" and row["found"] != "none"]
        return [row for row in found if "of other instances" not in row["found"]]

    up(rock)
    rock("sandbox", "create")
    assert leftovers() == []
    (rock_home / "run" / "sb-00000000aa").mkdir()
    argv = ["bwrap", "-c", "import time; time.sleep(300)", f"{rock_home}/run/sb-00000000bb"]
    stray = subprocess.Popen(argv, executable=sys.executable)
    try:
        found = {row["found"].partition(" ")[2].partition(":")[0]: row for row in leftovers()}
        assert "sb-00000000aa" in found["directories of sandboxes that are gone"]["found"]
        assert f"{stray.pid} (sb-00000000bb)" in found["processes of sandboxes that are gone"]["found"]
        assert {row["remedy"] for row in found.values()} == {"rock doctor --fix"}
        rock("down")
        assert not (rock_home / "run" / "sb-00000000aa").exists()
        assert stray.wait(10) == -signal.SIGKILL
    finally:
        stray.kill()
        stray.wait()
    assert leftovers() == []


def test_down_stops_a_platform_that_is_still_starting(rock: Rock, rock_home: Path) -> None:
    lock = rock_home / "server.lock"
    process = in_the_foreground(lambda: lock.exists() and lock.read_text())
    assert f"pid {process.pid}, " in rock("down").stdout  # its guardian, and itself
    _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert not (rock_home / "server.json").exists()
    assert "nothing runs" in rock("down").stdout


def test_a_contributed_command_without_its_extra_says_which_to_install(rock_home: Path) -> None:
    done = altered(
        ("fly", "--far"),
        "sys.modules['torch'] = None",
        "import importlib.metadata as m",
        "from rock.cli import _contributed",
        "point = m.EntryPoint('fly', 'no_such_package.cli:fly', 'rock.commands')",
        "_contributed.entry_points = lambda: [point]",
        code=1,
    )
    assert "no_such_package" in done.stderr
    assert "rock-roll[fly]" in done.stderr


def test_a_package_that_a_command_misses_while_it_runs_is_told_with_the_extra(rock_home: Path) -> None:
    done = altered(
        ("train", "alfworld-tiny"),
        "sys.modules['torch'] = None",  # as if it were not installed
        code=1,
    )
    assert "`rock train` needs torch" in done.stderr
    assert "rock-roll[train]" in done.stderr
    assert "bug" not in done.stderr


def test_a_missing_part_of_the_project_itself_is_a_bug(rock_home: Path) -> None:
    done = altered(
        ("train", "alfworld-tiny"),
        "sys.modules['roll_core.training.run'] = None",
        code=1,
    )
    assert "roll_core.training.run" in done.stderr
    assert "This is a bug" in done.stderr


def test_a_contributed_function_gets_its_arguments(rock_home: Path) -> None:
    done = altered(
        ("fly", "south", "--far"),
        "import types",
        "module = types.ModuleType('wings')",
        "def fly(where: str, far: bool = False) -> None:",
        "    print('flying', where, far)",
        "module.fly = fly",
        "sys.modules['wings'] = module",
        "import importlib.metadata as m",
        "from rock.cli import _contributed",
        "_contributed.entry_points = lambda: [m.EntryPoint('fly', 'wings:fly', 'rock.commands')]",
    )
    assert done.stdout == "flying south True\n"


def test_a_contributed_command_may_join_a_group(rock_home: Path) -> None:
    done = altered(
        ("run", "fly", "south"),
        "import types",
        "module = types.ModuleType('wings')",
        "def fly(where: str) -> None:",
        "    print('flying', where)",
        "module.fly = fly",
        "sys.modules['wings'] = module",
        "import importlib.metadata as m",
        "from rock.cli import _contributed",
        "names = ('run.fly', 'no-such-group.fly')",
        "_contributed.entry_points = lambda: [m.EntryPoint(n, 'wings:fly', 'rock.commands') for n in names]",
    )
    assert done.stdout == "flying south\n"


def test_ensure_platform_starts_one_once(rock: Rock, rock_home: Path) -> None:
    from rock.sdk import RockSync, ensure_platform

    url, started = ensure_platform(runtime="fake", port=0, capacity=7)
    assert started
    assert ensure_platform(runtime="fake") == (url, False)
    with RockSync() as client:
        assert client.url == url
        assert client.nodes()[0].capacity == 7
        client.shutdown()

"""The one directory that a sandbox shares with its node, and the guest's command line.

It is on the host's disk, so a sandbox must not be able to fill it. Where the platform is root it is sealed as soon as
the guest has made its socket: from then on it belongs to another user. An ordinary user can give its files to nobody;
there the node looks how much it holds (:func:`used_bytes`), which finds all but files that were opened and unlinked.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rock.domain.errors import InvalidRequest, StorageError
from rock.guest.pack import build_pyz
from rock.wire.models import SandboxSpec

INSIDE = "/run/rock"
PYZ = "guest.pyz"
SOCKET = "guest.sock"
PROXY = "proxy.sock"
"""Of a sandbox that may reach some hosts. Not longer than the guest's, whose path is looked at."""
MAX_SOCKET_PATH = 107
"""A unix socket's path is at most 108 bytes with its final zero."""

ORPHAN_AFTER_S = 45.0
"""A guest to whom nobody has been connected this long ends itself. A control plane that restarts is back in seconds;
what was killed for good must leave nothing within a minute."""

UNPRIVILEGED = 65534
_BLOCK_BYTES = 4096


def prepare(shared_dir: Path, uid: int, gid: int) -> None:
    """Make the directory, put the guest into it and give it to the sandbox's user. Blocking. Raises StorageError."""
    try:
        shared_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        shared_dir.chmod(0o700)
        pyz = shared_dir / PYZ
        pyz.write_bytes(build_pyz())
        pyz.chmod(0o444)
        if os.geteuid() == 0:
            os.chown(shared_dir, uid, gid)
            owner = _other_than(uid)
            os.chown(pyz, owner, owner)
    except OSError as error:
        raise StorageError(
            f"cannot prepare the sandbox's directory {shared_dir}: {error.strerror}",
            hint="Free some space or set ROCK_HOME to a directory that can be written.",
            cause=str(error),
        ) from error


def seal(shared_dir: Path) -> None:
    """Nothing more can be made in it from inside. Does nothing where we are not root. Blocking. Raises OSError."""
    if os.geteuid() == 0:
        owner = _other_than(shared_dir.stat().st_uid)
        os.chown(shared_dir, owner, owner)
        shared_dir.chmod(0o711)  # the guest still passes through it to its own files


def _other_than(uid: int) -> int:
    """Root inside has no capabilities, so it may not write either what belongs to somebody else."""
    return 0 if uid != 0 else UNPRIVILEGED


def used_bytes(directory: Path, enough: int) -> int:
    """Space taken by what is in it, empty files reckoned as a block; stops counting beyond ``enough``. Blocking."""
    total = 0
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):  # gone meanwhile
                total += max(_BLOCK_BYTES, os.lstat(os.path.join(folder, name)).st_blocks * 512)
            if total > enough:
                return total
    return total


def socket_path(shared_dir: Path) -> Path:
    """Where the host finds the guest. Raises InvalidRequest when the path is too long for a socket."""
    path = shared_dir / SOCKET
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise InvalidRequest(
            f"{path} is longer than {MAX_SOCKET_PATH} bytes, which a socket's path must not be",
            hint="Use a shorter ROCK_HOME.",
        )
    return path


def guest_argv(spec: SandboxSpec, python: str = "python3") -> list[str]:
    argv = [python, f"{INSIDE}/{PYZ}", "--socket", f"{INSIDE}/{SOCKET}", "--orphan-after", f"{ORPHAN_AFTER_S:g}"]
    if spec.egress:
        argv += ["--egress", f"{INSIDE}/{PROXY}"]
    if spec.entry:
        argv += ["--entry", spec.entry]
        if spec.python_path:
            argv += ["--python-path", ":".join(spec.python_path)]
    return argv


def environ_of(spec: SandboxSpec, sandbox_id: str) -> dict[str, str]:
    """What every sandbox finds in its environment; the spec's own settings come last and win."""
    return {
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "ROCK_SANDBOX": sandbox_id,
    } | spec.environ


def user_of(spec: SandboxSpec) -> tuple[int, int]:
    """Numeric user and group inside: the spec's, else an unprivileged one that the node can share a directory with.

    Root shares with nobody; an ordinary user can give its files to none but itself. Raises InvalidRequest.
    """
    if not spec.user:
        return (UNPRIVILEGED, UNPRIVILEGED) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    user, _, group = spec.user.partition(":")
    if user == "root":
        user = "0"
    if not user.isdigit() or (group and not group.isdigit()):
        raise InvalidRequest(f"user is {spec.user!r}, expected 'uid:gid' in numbers, such as '1000:1000', or 'root'")
    return int(user), int(group or user)


def nothing_to_keep(env: str = "") -> InvalidRequest:
    """Why a sandbox with a read-only root has no snapshots; ``env``: the environment that it hosts, if any."""
    why = "its root is read-only, so there is nothing that a snapshot could keep"
    if not env:
        return InvalidRequest(why, hint="Ask for a writable root: SandboxSpec(read_only=False), or --writable.")
    return InvalidRequest(
        why,
        hint='Under recovery = "snapshot" set [sandbox] read_only = false in env.toml, '
        "and have the environment write its state to the root (/var/tmp, say).",
    )

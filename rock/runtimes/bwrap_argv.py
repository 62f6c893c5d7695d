"""What a sandbox under bubblewrap is made of, as a command line. Reads the host's layout, starts nothing.

Invariant: nothing inside runs as the host's root, under whatever number it sees itself. A user namespace made by root
would map the inner user to the host's root, and the kernel lets that user write /proc/sys without any capability. So an
ordinary user gets a user namespace; root gets none, and drops to another user, and every capability, before the guest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rock.domain.errors import InvalidRequest
from rock.runtimes.shared import INSIDE, UNPRIVILEGED, environ_of, guest_argv, user_of
from rock.wire.models import SandboxSpec

HOST_IMAGE = "host"
_BUNDLE_INSIDE = "/opt/rock/env"

# Of /etc only what programs need to run; names, keys and settings of the host stay outside.
_ETC = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "nsswitch.conf",
    "localtime",
    "ssl/certs",
    "mime.types",
)


def bwrap_argv(
    sandbox_id: str, spec: SandboxSpec, shared_dir: Path, bundle: Path | None, folder: Path, status_fd: int
) -> list[str]:
    uid, gid = user_inside(spec)
    prefix = Path(sys.base_prefix)
    argv = ["bwrap", *_namespaces(uid, gid), "--new-session", "--hostname", sandbox_id]
    argv += ["--json-status-fd", str(status_fd)]
    if not spec.read_only:  # in memory, so neither limit may be passed
        argv += ["--size", str(min(spec.limits.disk_bytes, spec.limits.memory_bytes)), "--tmpfs", "/"]
    argv += _open_parents(Path(INSIDE), Path(_BUNDLE_INSIDE), Path("/etc/passwd"), prefix)
    argv += _host_system()
    if spec.network == "bridge":
        argv += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
    else:
        argv += ["--unshare-net"]
    if not prefix.is_relative_to("/usr"):
        argv += ["--ro-bind", str(prefix), str(prefix)]
    argv += ["--ro-bind", str(folder / "passwd"), "/etc/passwd", "--ro-bind", str(folder / "group"), "/etc/group"]
    if bundle is not None:
        argv += ["--ro-bind", str(bundle), _BUNDLE_INSIDE]
    size = str(spec.limits.tmpfs_bytes)
    argv += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"]
    argv += ["--remount-ro", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/tmp"]
    argv += ["--bind", str(shared_dir), INSIDE, "--chdir", spec.workdir]
    argv += ["--remount-ro", "/"] if spec.read_only else []
    argv += ["--clearenv", "--setenv", "PATH", f"{prefix}/bin:/usr/local/bin:/usr/bin:/bin"]
    for name, value in environ_of(spec, sandbox_id).items():
        argv += ["--setenv", name, value]
    python = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [*argv, "--", *_drop_root(uid, gid), *_limits(spec), *guest_argv(spec, str(python))]


def user_inside(spec: SandboxSpec) -> tuple[int, int]:
    """Raises InvalidRequest where the sandbox's root would be the host's."""
    uid, gid = user_of(spec) if spec.user else (UNPRIVILEGED, UNPRIVILEGED)
    if os.geteuid() == 0 and 0 in (uid, gid):
        raise InvalidRequest(
            f"bubblewrap started by root cannot give a sandbox root (user is {spec.user!r})",
            hint="Run the platform as an ordinary user, or use Docker.",
        )
    return uid, gid


def _namespaces(uid: int, gid: int) -> list[str]:
    argv = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"]
    if os.geteuid() == 0:  # kept for the moment until _drop_root
        return [*argv, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    return [*argv, "--unshare-user", "--uid", str(uid), "--gid", str(gid)]


def _drop_root(uid: int, gid: int) -> list[str]:
    if os.geteuid() != 0:
        return []
    drop = ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *drop]


def _open_parents(*paths: Path) -> list[str]:
    """Left to itself bubblewrap closes the parents of a bind whose source is closed to others."""
    parents = {parent for path in paths for parent in path.parents[:-1] if not parent.is_relative_to("/usr")}
    return [word for parent in sorted(parents) for word in ("--perms", "0755", "--dir", str(parent))]


def write_accounts(folder: Path) -> None:
    """The user and group names that a sandbox sees."""
    (folder / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n")
    (folder / "group").write_text("root:x:0:\nnogroup:x:65534:\n")


def _host_system() -> list[str]:
    argv = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            argv += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            argv += ["--ro-bind", str(path), str(path)]
    for name in _ETC:
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return argv


def _limits(spec: SandboxSpec) -> list[str]:
    """Set inside, by prlimit: a limit on processes set outside would count all of the user's processes on the host.

    Memory is RLIMIT_DATA, per process; RLIMIT_AS would refuse what is only reserved, as numpy and threads do.
    """
    limits = spec.limits
    argv = ["prlimit", f"--nofile={limits.open_files}", f"--fsize={spec.file_size_bytes}", "--core=0"]
    argv.append(f"--data={limits.memory_bytes}")
    if os.geteuid() != 0 and _counts_processes_per_namespace():
        argv.append(f"--nproc={limits.pids}")
    return argv


def _counts_processes_per_namespace() -> bool:
    """Since Linux 5.14; before, the limit would count what the user runs elsewhere."""
    major, minor = os.uname().release.split(".")[:2]
    digits = "".join(character for character in minor if character.isdigit())
    return (int(major), int(digits or 0)) >= (5, 14)

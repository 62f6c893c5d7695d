"""A container's file system from what this machine has: its Python, basic commands, and the libraries both need.

The interpreter is taken from ``sys.base_prefix`` wherever that is and put under /usr/local, where it finds its standard
library by itself. No network, no package manager, about 3 s.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable
from pathlib import Path

# fmt: off
_COMMANDS = (
    "bash", "sh", "ls", "cat", "cp", "mv", "rm", "mkdir", "rmdir", "touch", "echo", "printf", "env", "head", "tail",
    "grep", "sed", "awk", "mawk", "find", "sort", "uniq", "wc", "tr", "cut", "xargs", "sleep", "ps", "kill", "chmod",
    "chown", "ln", "pwd", "test", "[", "true", "false", "date", "id", "whoami", "uname", "basename", "dirname", "tee",
    "seq", "dd", "df", "du", "stat", "mktemp", "timeout", "nproc", "readlink", "realpath", "tar", "gzip", "gunzip",
    "diff", "cmp", "md5sum", "sha256sum", "od", "expr", "yes", "mkfifo", "git", "patch",
)
# fmt: on

# Wheels with compiled parts expect these to be there: the C++ runtime, OpenMP, zlib, and the parts of glibc that were
# libraries of their own before 2.34 and are still asked for by name.
_EXTRA_LIBRARIES = (
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libgomp.so.1",
    "libz.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
)

_LEFT_OUT = {"site-packages", "dist-packages", "test", "idlelib", "tkinter", "ensurepip", "turtledemo", "lib2to3"}

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/resolv.conf": "",
}
_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def recipe() -> str:
    """Changes whenever a file system made now could differ in kind from one made before: this module, or Python's X.Y.

    Not with its patch release: two of them on one engine would remake each other's base image in turn.
    """
    version = "{}.{}".format(*sys.version_info)
    return hashlib.sha256(Path(__file__).read_bytes() + version.encode()).hexdigest()[:12]


def write_rootfs(path: Path) -> None:
    """Write the file system as a tar to ``path``. Blocking."""
    with tarfile.open(path, "w") as archive:
        _skeleton(archive)  # the links of merged /usr come first: whatever follows lands behind them
        objects = [*_python(archive), *_commands(archive)]
        _libraries(archive, objects)
        for name, text in _FILES.items():
            _add_bytes(archive, name, text.encode())
        for source in _CERTIFICATES:
            if Path(source).is_file():
                _add_bytes(archive, "etc/ssl/certs/ca-certificates.crt", Path(source).read_bytes())
                break


def _skeleton(archive: tarfile.TarFile) -> None:
    directories = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700}
    for name in ("usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local", "usr/local/bin", "usr/local/lib"):
        directories[name] = 0o755
    for name in ("etc", "etc/ssl", "etc/ssl/certs", "proc", "sys", "dev", "run", "run/rock", "opt", "var", "home"):
        directories[name] = 0o755
    for name, mode in sorted(directories.items()):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        archive.addfile(entry)
    for name in ("bin", "sbin", "lib", "lib64"):
        _add_link(archive, name, f"usr/{name}")


def _python(archive: tarfile.TarFile) -> list[Path]:
    """Adds the interpreter; returns the objects whose libraries it needs."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = Path(sys.base_prefix, "bin", version).resolve()
    stdlib = Path(sysconfig.get_path("stdlib"))
    _add_file(archive, f"usr/local/bin/{version}", interpreter)
    for alias in ("python3", "python"):
        _add_link(archive, f"usr/local/bin/{alias}", version)
    archive.add(stdlib, f"usr/local/lib/{version}", filter=_stdlib_filter)
    for empty in ("site-packages",):
        entry = tarfile.TarInfo(f"usr/local/lib/{version}/{empty}")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
    return [interpreter, *stdlib.glob("lib-dynload/*.so")]


def _stdlib_filter(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = Path(entry.name).name
    if name in _LEFT_OUT or name.startswith("config-") or name.endswith((".opt-1.pyc", ".opt-2.pyc", ".a")):
        return None
    return _owned_by_root(entry)


def _commands(archive: tarfile.TarFile) -> list[Path]:
    added: dict[Path, str] = {}
    for command in _COMMANDS:
        found = shutil.which(command, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if found is None:
            continue
        real = Path(found).resolve()
        if real in added:
            _add_link(archive, f"usr/bin/{command}", added[real])
        else:
            _add_file(archive, f"usr/bin/{command}", real)
            added[real] = command
    return list(added)


def _libraries(archive: tarfile.TarFile, objects: Iterable[Path]) -> None:
    """The closure of shared libraries. Those from unusual places go beside libc, where the loader looks anyway."""
    found = _ldd(objects)
    system = next(path for name, path in found.items() if name.startswith("libc.so"))
    for name in _EXTRA_LIBRARIES:
        if (system.parent / name).exists():
            found.setdefault(name, system.parent / name)
    for name, path in sorted(found.items()):
        standard = str(path).startswith(("/lib", "/usr/lib"))
        place = path if standard else system.parent / name
        inside = str(place).lstrip("/")
        _add_file(archive, inside if inside.startswith("usr/") else f"usr/{inside}", path.resolve())


def _ldd(objects: Iterable[Path]) -> dict[str, Path]:
    """Name → file of every library that ``objects`` load; ldd's answer is already the transitive closure."""
    answer = subprocess.run(
        ["ldd", *map(str, objects)],
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    libraries: dict[str, Path] = {}
    for line in answer.stdout.splitlines():
        match = re.match(r"\s+(?:(\S+) => )?(/\S+) \(0x", line)
        if match:
            path = Path(match.group(2))
            libraries.setdefault(match.group(1) or path.name, path)
    return libraries


def _add_file(archive: tarfile.TarFile, name: str, source: Path) -> None:
    archive.add(source, name, recursive=False, filter=_owned_by_root)


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def _add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    if entry.islnk():  # a hard link to a name outside the archive would be lost
        entry.type = tarfile.REGTYPE
    return entry

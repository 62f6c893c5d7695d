"""Packs the guest into one file that any Python 3.8+ can run. Same sources, same bytes."""

from __future__ import annotations

import functools
import importlib.util
import io
import zipfile
from pathlib import Path

MODULES = (
    "__init__",
    "__main__",
    "beside",
    "commands",
    "connection",
    "egress",
    "env",
    "envhost",
    "episode",
    "errors",
    "fields",
    "files",
    "jobs",
    "keeper",
    "loop",
    "orphan",
    "output",
    "pausing",
    "processes",
    "programs",
    "server",
    "shell",
    "steps",
    "tunnel",
)
_MAIN = "import sys\nfrom rock.guest.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"


@functools.cache
def build_pyz() -> bytes:
    """The bytes of ``guest.pyz``. Sources for every Python, and compiled code that saves this version 40 ms a start."""
    here = Path(__file__).parent
    members = {"__main__.py": _MAIN, "rock/__init__.py": ""}
    members |= {f"rock/guest/{name}.py": (here / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, source in sorted(members.items()):
            archive.writestr(_entry(path), source)
            archive.writestr(_entry(path + "c"), _compiled(path, source))
    return buffer.getvalue()


def _entry(path: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    return info


def _compiled(path: str, source: str) -> bytes:
    """An unchecked hash-based .pyc: a Python of another version ignores it and compiles the source."""
    import marshal

    code = compile(source, f"guest.pyz/{path}", "exec", dont_inherit=True)
    header = importlib.util.MAGIC_NUMBER + (0b01).to_bytes(4, "little") + importlib.util.source_hash(source.encode())
    return header + marshal.dumps(code)

"""``python -m envs.swebench.prepare --out DIR [--data PATH] [--quick]``: what the agent's image needs, and no more.

Data as in :mod:`envs.swebench.judge.prepare`. Written are DIR/tasks.json (split ``test``, and ``train`` with the same
instances), DIR/data with the repositories and each instance's statement, and DIR/expert.json with the actions of the
reference solution, which ``rock env check --instances`` plays; it is **not** part of the image. Neither hidden tests
nor reference solutions are in DIR/data or DIR/task-data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from envs.swebench.judge.prepare import arguments, has_archive, instances, write, write_environment
from envs.swebench.judge.rows import Row, RowError

_END_OF_PATCH = "END_OF_THE_PATCH"


def expert_actions(row: Row) -> list[str]:
    """The shell command that applies the reference solution, and the submission."""
    patch = row.patch.rstrip("\n")  # no more: a context line that is empty ends a patch as a single space
    return [f"git apply - <<'{_END_OF_PATCH}'\n{patch}\n{_END_OF_PATCH}", "submit"]


def prepare(out: Path, data: Path, *, quick: bool = False) -> list[str]:
    """Write the agent's data under ``out``; returns the instance ids. Raises RowError."""
    rows = instances(data, quick=quick)
    for row in rows:
        public = {"statement": row.problem_statement, "repo": row.repo}
        write(out, "instances", row, public, own_image=not has_archive(data, row))
    write_environment(data, rows, out)
    ids = [row.instance_id for row in rows]
    (out / "tasks.json").write_text(json.dumps({"train": ids, "test": ids}, indent=1) + "\n")
    experts = {row.instance_id: expert_actions(row) for row in rows}
    (out / "expert.json").write_text(json.dumps(experts), encoding="utf-8")
    return ids


def main(argv: list[str] | None = None) -> int:
    try:
        out, data, quick = arguments("envs.swebench.prepare", argv)
        prepare(out, data, quick=quick)
    except (RowError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

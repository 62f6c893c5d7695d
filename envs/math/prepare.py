"""``python -m envs.math.prepare --out DIR [--data PATH] [--question COLUMN] [--answer COLUMN] [--quick]``

Writes DIR/data/<split>.jsonl and DIR/tasks.json. ``--data``, else ``$MATH_DATA``, is a data set as ``dataset`` reads;
``--question`` and ``--answer``, else ``$MATH_QUESTION`` and ``$MATH_ANSWER``, name its columns. Without one the few
problems of our own are used, with all of their splits. A problem whose answer the checker cannot read is left out, with
a word; if none is left, that is an error. ``--quick``: ten problems of each split.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from envs.math.dataset import Columns, DataError, MathProblem, read
from envs.math.verifier import Verifier

SAMPLE = Path(__file__).parent / "sample"
QUICK = 10


def prepare(out: Path, data: Path, columns: Columns, *, quick: bool = False) -> dict[str, list[str]]:
    """Write the bundle's data under ``out``; returns the tasks by split. Raises DataError, VerifierBroken."""
    tasks: dict[str, list[str]] = {}
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    verifier = Verifier()
    try:
        for split, problems in read(data, columns).items():
            kept = _readable(problems[:QUICK] if quick else problems, split, verifier)
            lines = (json.dumps({"question": p.question, "answer": p.answer}, ensure_ascii=False) for p in kept)
            (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            tasks[split] = [f"{split}/{i:06d}" for i in range(len(kept))]
    finally:
        verifier.close()
    (out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")
    return tasks


def _readable(problems: list[MathProblem], split: str, verifier: Verifier) -> list[MathProblem]:
    """Those whose reference answer the checker can read, and finds equal to itself."""
    kept = [p for p in problems if verifier.verdict(p.answer, p.answer) == "right"]
    if lost := [p.answer for p in problems if p not in kept]:
        some = ", ".join(repr(answer) for answer in lost[:3])
        if not kept:
            raise DataError(f"{split}: the checker can read none of the {len(lost)} answers, such as {some}.")
        count = f"{len(lost)} of {len(problems)} problems"
        sys.stderr.write(f"{split}: left out {count} whose answer the checker cannot read, such as {some}\n")
    return kept


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="envs.math.prepare", description="Write a data set of problems.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write data/ and tasks.json into")
    parser.add_argument(
        "--data", default=os.environ.get("MATH_DATA", ""), help="data set; default: $MATH_DATA, or our own"
    )
    parser.add_argument("--question", default=os.environ.get("MATH_QUESTION", ""), help="column with the question")
    parser.add_argument("--answer", default=os.environ.get("MATH_ANSWER", ""), help="column with the answer")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} problems of each split, for tests")
    args = parser.parse_args(argv)
    source = Path(args.data).expanduser().absolute() if args.data else SAMPLE
    try:
        prepare(args.out, source, Columns(args.question, args.answer), quick=args.quick)
    except DataError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

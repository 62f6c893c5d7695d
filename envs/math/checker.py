"""``python -m envs.math.checker``: the program that compares answers, by the ``math-verify`` library.

It reads one JSON object a line, ``{"gold": …, "answer": …}``, and writes one, ``{"verdict": …}``: ``right``, ``wrong``,
``no_answer`` (nothing could be read from the answer), ``costly`` (comparing takes more computing than allowed) or
``bad_gold``. The library can loop for ever on odd expressions and is run by people's models, so it works in a process
of its own, under limits of memory and of computing time per comparison (not of wall time: a busy machine is nobody's
wrong answer).
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import signal
import sys
from typing import Any

CPU_S = 2.0
"""Computing one comparison may take: ordinary ones take milliseconds."""
MEMORY_BYTES = 1 << 30
"""Address space; about 350 MiB of it is there after the imports."""


class _Costly(BaseException):
    """No ordinary exception: the library catches those."""


def _too_long(*_: object) -> None:
    raise _Costly


def compare(gold: str, answer: str) -> str:
    """The verdict on ``answer``. Needs ``math_verify``; whatever else breaks in it is raised."""
    from math_verify import parse, verify

    gold_is = parse(_boxed(gold), parsing_timeout=None, raise_on_error=False)
    if not _understood(gold_is):
        return "bad_gold"
    answer_is = parse(_boxed(answer), parsing_timeout=None, raise_on_error=False)
    if not _understood(answer_is):
        return "no_answer"
    return "right" if verify(gold_is, answer_is, timeout_seconds=None, raise_on_error=False) else "wrong"


def _understood(parsed: list[Any]) -> bool:
    """Beside what it means the library gives the text itself; where that is all, it would compare texts."""
    return any(not isinstance(part, str) for part in parsed)


def _boxed(text: str) -> str:
    return f"$\\boxed{{{text}}}$"


def _limited(gold: str, answer: str) -> str:
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_S, 0.1)  # again and again: a C call may swallow the first
        return compare(gold, answer)
    except (_Costly, MemoryError, RecursionError, OverflowError):
        return "costly"
    finally:
        while True:
            with contextlib.suppress(_Costly):
                signal.setitimer(signal.ITIMER_PROF, 0)
                break


def main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.WARNING)  # the library tells of every expression it cannot read
    signal.signal(signal.SIGPROF, _too_long)
    import math_verify

    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer of ours
    for line in sys.stdin:
        if not line.strip():
            print(json.dumps({"version": getattr(math_verify, "__version__", "")}), file=answers, flush=True)
            continue
        asked: dict[str, Any] = json.loads(line)
        verdict = _limited(str(asked["gold"]), str(asked["answer"]))
        print(json.dumps({"verdict": verdict}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The process that compares answers, kept while it works and replaced when it does not.

Invariant: a verdict comes from the checker or not at all. A checker that cannot be started, dies, or is silent without
having computed raises :class:`VerifierBroken`, which makes the episode void; one that computes for longer than it may
(inside a call that its own limit cannot interrupt) is killed and gives ``costly``, which is an answer's fault.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence

from envs.math.checker import CPU_S

WALL_S = 60.0
"""For one comparison, until the process is given up as broken: far more than its computing takes on a busy machine."""
_GRACE_S = 1.0
"""Of computing beyond its limit: the checker is to end by itself if it can."""
_LOOK_S = 0.1
START_S = 60.0
VERDICTS = frozenset({"right", "wrong", "no_answer", "costly", "bad_gold"})
COMMAND = (sys.executable, "-m", "envs.math.checker")


class VerifierBroken(RuntimeError):
    """The checker failed, not the answer."""


class Verifier:
    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        *,
        wall_s: float = WALL_S,
        cpu_s: float = CPU_S,
        start_s: float = START_S,
    ) -> None:
        self._command = list(command)
        self._wall_s = wall_s
        self._cpu_s = cpu_s
        self._start_s = start_s
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def verdict(self, gold: str, answer: str) -> str:
        """One of ``VERDICTS``. Raises VerifierBroken."""
        process = self._running()
        limit_s = cpu_seconds(process.pid) + self._cpu_s + _GRACE_S
        self._send(process, json.dumps({"gold": gold, "answer": answer}))
        line = self._line(process, self._wall_s, cpu_limit_s=limit_s)
        if line is None:
            costly = cpu_seconds(process.pid) >= limit_s
            self.close()
            if costly:
                return "costly"
            raise VerifierBroken(f"the checker was silent for {self._wall_s:g} s without computing for long")
        try:
            verdict = json.loads(line)["verdict"]
        except (ValueError, KeyError, TypeError):
            verdict = None
        if verdict not in VERDICTS:
            self.close()
            raise VerifierBroken(f"the checker said {line[:200]!r}; expected one of {', '.join(sorted(VERDICTS))}")
        return str(verdict)

    def close(self) -> None:
        process, self._process, self._buffer = self._process, None, b""
        if process is not None:
            process.kill()
            process.communicate()

    # --- the process -------------------------------------------------------------------------------------------------

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
            )
        except OSError as error:
            raise VerifierBroken(f"the checker {self._command} cannot be started: {error}") from error
        process = self._process
        self._send(process, "")
        if self._line(process, self._start_s) is None:  # its imports may take seconds
            self.close()
            raise VerifierBroken(f"the checker {self._command} was not ready within {self._start_s:g} s")
        return process

    def _send(self, process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died(process) from error

    def _line(self, process: subprocess.Popen[bytes], within_s: float, *, cpu_limit_s: float = math.inf) -> str | None:
        """The next line of its answer; None when there is none in time, or it has computed for ``cpu_limit_s``."""
        assert process.stdout is not None
        until_s = time.monotonic() + within_s
        while b"\n" not in self._buffer:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or cpu_seconds(process.pid) >= cpu_limit_s:
                return None
            if not select.select([process.stdout], [], [], min(left_s, _LOOK_S))[0]:
                continue
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                raise self._died(process)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    def _died(self, process: subprocess.Popen[bytes]) -> VerifierBroken:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        status = process.poll()
        self.close()
        return VerifierBroken(
            f"the checker {self._command} ended with status {status}; is math-verify installed? `python -m "
            "envs.math.checker` says what is wrong"
        )


def cpu_seconds(pid: int) -> float:
    """Computing time of a process so far; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

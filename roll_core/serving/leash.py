"""Holds an episode's program on a leash: ``python -I -S leash.py GRACE_S PROGRAM [ARGUMENT]…``. Standard library only.

Invariants: when standard input ends, because the trainer closed it or is no more, the program and all that it started
are ended, first in order, after GRACE_S by force; when the program ends, what it left behind is ended; the exit status
is the program's, 128 + the signal's number where one ended it, 127 where it could not be started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main(grace_s: float, argv: list[str]) -> int:
    try:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        return 127

    def tell(number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        tell(signal.SIGTERM)
        timer = threading.Timer(grace_s, tell, (signal.SIGKILL,))
        timer.daemon = True
        timer.start()

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    tell(signal.SIGKILL)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))

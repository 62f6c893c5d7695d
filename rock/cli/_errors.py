"""How a failure reaches a person: one paragraph on standard error that ends with what to do, and an exit code.

0 is success, 1 a failure, 2 a usage error, 130 an interrupt. A traceback is shown only with ``--debug``.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rock.domain.errors import RockError, StorageError

FAILED = 1
# How many lines of a cause (a build's output, an environment's traceback) help before they only scroll.
_CAUSE_LINES = 12
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


def debugging() -> bool:
    return os.environ.get("ROCK_DEBUG", "") not in {"", "0"}


def storage_error(error: OSError) -> StorageError:
    """The disk's refusal in the platform's vocabulary."""
    where = error.filename or "the disk"
    return StorageError(
        f"Cannot write {where}: {error.strerror or error}.",
        hint="Free some space, or give another directory with --home or ROCK_HOME.",
    )


def explain(error: BaseException) -> str:
    """The paragraph for ``error``, without the leading ``Error:``."""
    if isinstance(error, OSError) and not isinstance(error, RockError) and error.errno in _DISK_ERRORS:
        error = storage_error(error)
    if isinstance(error, RockError):
        text = f"{_sentence(error.message)} {_sentence(error.hint)}".strip()
        lines = [line for line in error.cause.splitlines() if line.strip()]
        if lines:
            text += "\n" + "\n".join(f"  {line}" for line in lines[-_CAUSE_LINES:])
        return text
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}."
    # Packages that contribute commands keep their own vocabulary in a module `errors`; its texts are for people.
    if type(error).__module__.rpartition(".")[2] == "errors":
        return str(error)
    return f"{type(error).__name__}: {error}\nThis is a bug. Run it again with `rock --debug …` to see where."


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?:)" else f"{text}."


@contextmanager
def told_to_people() -> Iterator[None]:
    """Turn whatever escapes a command into its paragraph and exit code."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:  # noqa: BLE001 - the last stop before the person: nothing may end in a traceback
        if debugging():
            traceback.print_exc()
        print(f"Error: {explain(error)}", file=sys.stderr)  # noqa: T201 - this is the command line
        sys.exit(FAILED)

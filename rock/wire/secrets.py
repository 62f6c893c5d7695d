"""Secrets from the environment: in a variable, or better in a file that a variable names, as containers hand them over.

Invariant: an error names the file and never what is in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from rock.domain.errors import InvalidRequest


def secret(name: str) -> str:
    """``$NAME``; where that is empty, what the file named by ``$NAME_FILE`` holds, without white space around it; empty
    where neither is set. Raises InvalidRequest for a file that cannot be read or has nothing in it."""
    if value := os.environ.get(name, ""):
        return value
    path = os.environ.get(f"{name}_FILE", "")
    if not path:
        return ""
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidRequest(
            f"{name}_FILE names {path}, which cannot be read: {why}.",
            hint=f"Write the secret into that file, or unset {name}_FILE.",
        ) from error
    if not text:
        raise InvalidRequest(f"{name}_FILE names {path}, which is empty.", hint="Write the secret into that file.")
    return text

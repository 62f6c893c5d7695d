"""The platform's log: one line per record, ``key=value`` words in it, the request it belongs to in every line.

A line that a request caused names the request (``request=…``), also from parts that know nothing of HTTP; the answer's
``X-Request-Id``, and ``request_id`` in a problem document, say the same. Requests are told apart by tasks, so what one
starts in the background goes on under its name.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

from rock.api.problems import request_id

_QUIET = ("httpx", "httpcore", "docker", "urllib3", "alembic", "asyncio")


class _Lines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        ident = request_id.get()
        record.request = f" request={ident}" if ident != "-" else ""
        return super().format(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (ident := request_id.get()) != "-":
            line["request"] = ident
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(*, debug: bool = False) -> None:
    """``ROCK_LOG=json`` for machines that read it."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if os.environ.get("ROCK_LOG") == "json" else _Lines())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    for noisy in _QUIET:
        logging.getLogger(noisy).setLevel(logging.WARNING)

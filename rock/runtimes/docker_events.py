"""Docker's event stream: who died, and who ran out of memory. A hint, never the only way to find out."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import requests
from docker.api import APIClient
from docker.errors import DockerException

from rock.runtimes.base import RuntimeEvent

_RETRY_S = 1.0


class EventThread:
    """Follows the daemon's events in a thread of its own and brings them to a queue of ``loop``. Reconnects."""

    def __init__(
        self, client: Callable[[], APIClient], labels: list[str], id_label: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        self._new_client = client
        self._id_label = id_label
        self._filters = {"type": "container", "event": ["die", "oom"], "label": labels}
        self._loop = loop
        self._stopped = threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._stream is not None:
            with contextlib.suppress(DockerException, requests.RequestException, OSError, AttributeError):
                self._stream.close()

    def _run(self) -> None:
        since = int(time.time())
        while not self._stopped.is_set():
            began = int(time.time())
            try:
                self._follow(since)
            except (DockerException, requests.RequestException, OSError, ValueError):
                # The daemon went away, or the connection was idle for too long. What happens meanwhile is asked for
                # again with `since`; what is told twice does no harm.
                self._stopped.wait(_RETRY_S)
            since = began

    def _follow(self, since: int) -> None:
        client = self._new_client()
        try:
            self._stream = client.events(since=since, filters=self._filters, decode=True)
            for event in self._stream:
                if self._stopped.is_set():
                    return
                self._tell(event)
        finally:
            client.close()

    def _tell(self, event: dict[str, Any]) -> None:
        attributes = event["Actor"]["Attributes"]
        code = attributes.get("exitCode")
        found = RuntimeEvent(
            sandbox_id=attributes.get(self._id_label, ""),
            kind={"die": "died"}.get(event["Action"], event["Action"]),
            exit_code=int(code) if code is not None else None,
        )
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self.queue.put_nowait, found)

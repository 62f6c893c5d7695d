"""Images that sandboxes will want soon, fetched and made while nobody waits for them.

Invariants: one at a time, so that of the pulls a machine makes at once one is left for whoever waits
(:mod:`rock.runtimes.making`); what fails here fails again, and is told, when a sandbox wants it; the newest are kept of
more than ``MOST``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from rock.domain.errors import RockError
from rock.runtimes.base import Runtime

log = logging.getLogger(__name__)

MOST = 1024


class Prefetcher:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._wanted: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, images: Iterable[str]) -> None:
        """Answers at once. What is here already costs a look."""
        self._wanted |= dict.fromkeys(images)
        for image in list(self._wanted)[:-MOST]:
            del self._wanted[image]
        if self._wanted and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._work(), name="prefetch")

    async def close(self) -> None:
        """A pull under way ends by itself, in its thread."""
        self._wanted.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while self._wanted:
            image = next(iter(self._wanted))
            try:
                await self._runtime.ensure_image(image)
            except RockError as error:
                log.info("image=%s prefetching failed: %s", image, error)
            finally:
                self._wanted.pop(image, None)

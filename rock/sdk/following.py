"""Following the platform's events: server-sent events read line by line, taken up again by id when they break off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import orjson

from rock.domain.errors import PlatformUnavailable, from_problem
from rock.sdk.transport import FIRST_RETRY_S, LONGEST_RETRY_S, Transport
from rock.wire.models import EventView

# The platform says something every 10 s, if only that it is still there.
_SILENCE_S = 30.0


async def follow(
    transport: Transport, kinds: Sequence[str], run_id: str, after: int | None, retry_s: float
) -> AsyncGenerator[EventView, None]:
    loop = asyncio.get_running_loop()
    last = after
    attempt, well_at = 0, loop.time()
    while True:
        try:
            headers = {} if last is None else {"Last-Event-ID": str(last)}
            params = {"kind": list(kinds), "run_id": run_id}
            async with transport.lines("events/stream", params=params, headers=headers, silence_s=_SILENCE_S) as lines:
                async for frame in _frames(lines):
                    attempt, well_at = 0, loop.time()
                    if frame.get("event") == "problem":
                        raise from_problem(orjson.loads(frame["data"]))
                    last = int(frame.get("id", last or 0))
                    if "event" not in frame and "data" in frame:
                        yield EventView.model_validate_json(frame["data"])
            # It ended in order: we were too slow, or the platform stops. Either way the id says where to go on.
        except PlatformUnavailable:
            if loop.time() - well_at >= retry_s:
                raise
        pause_s = random.uniform(0, min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**attempt))
        attempt += 1
        await asyncio.sleep(pause_s)


async def _frames(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, str]]:
    """What stands between two empty lines, by field; a field without a frame's end is not believed."""
    frame: dict[str, str] = {}
    async for line in lines:
        if not line:
            if frame:
                yield frame
            frame = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            frame[name] = value.removeprefix(" ")

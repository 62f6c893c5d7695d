"""Server-sent events: ``GET /v1/events/stream``.

A client that comes back with the ``Last-Event-ID`` it saw misses nothing. Silence is filled with comments, so that both
sides, and what lies between, know that the other is there; a client that takes nothing for ``STUCK_S`` is hung up on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from rock.api.problems import request_id
from rock.control.control import Control
from rock.control.following import Lagged
from rock.domain.errors import RockError
from rock.wire.models import EventView

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 10.0
STUCK_S = 30.0
_RETRY_MS = 1000
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # for proxies that would collect it


class EventStream(StreamingResponse):
    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(frames, headers=_HEADERS)
        self.frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bounded(message: Message) -> None:
            async with asyncio.timeout(STUCK_S):
                await send(message)

        try:
            await super().__call__(scope, receive, bounded)
        except TimeoutError:
            log.info("a client that follows events took nothing for %g s", STUCK_S)
            raise
        finally:
            await self.frames.aclose()  # at once: garbage collection would leave the client subscribed for a while


def stream_router(control: Control) -> APIRouter:
    router = APIRouter(prefix="/events", tags=["platform"])

    @router.get("/stream", summary="Follow what happens", status_code=200, response_class=EventStream)
    async def stream(
        kind: Annotated[list[str], Query(description="Only events of these kinds; may be repeated.")] = [],  # noqa: B006
        run_id: str = "",
        after: Annotated[
            int | None, Query(ge=0, description="Begin after this id; 0 for all that is kept. Default: from now on.")
        ] = None,
        last_event_id: Annotated[int | None, Header(ge=0, description="The same, from a client that resumes.")] = None,
    ) -> EventStream:
        """Server-sent events (`text/event-stream`): each has the event's id, and the event as JSON in `data`. Resume
        with the header `Last-Event-ID`. A client that falls too far behind gets an event of type `lagged` and is cut;
        nothing is lost if it resumes. Silence is filled with comments every ten seconds."""
        begin = last_event_id if last_event_id is not None else after
        return EventStream(_frames(control, begin, kind, run_id))

    return router


async def _frames(control: Control, after: int | None, kinds: list[str], run_id: str) -> AsyncGenerator[bytes, None]:
    last = after or 0
    yield b"retry: %d\n\n" % _RETRY_MS
    following = control.history.followers.follow(after=after, kinds=kinds, run_id=run_id, keep_alive_s=KEEP_ALIVE_S)
    try:
        async with aclosing(following):
            async for found in following:
                if isinstance(found, EventView):
                    last = found.id
                    yield b"id: %d\ndata: %s\n\n" % (found.id, found.model_dump_json().encode())
                else:
                    # An id without data moves the place to resume from and is no event.
                    yield b": still here\nid: %d\n\n" % found
                    last = found
    except Lagged:
        yield b"event: lagged\ndata: %s\n\n" % orjson.dumps({"resume_after": last})
    except RockError as error:
        problem = error.to_problem() | {"request_id": request_id.get()}
        yield b"event: problem\ndata: %s\n\n" % orjson.dumps(problem)

"""One connection to a node's server, after the handshake: requests out, answers paired by id, pushes passed on."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rock.domain.errors import DeadlineExceeded, PlatformUnavailable, RockError, from_problem
from rock.wire import node_wire as wire
from rock.wire.models import Message

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Asked:
    op: str
    answer: asyncio.Future[Any]
    too_late: Callable[[object], None] | None
    """What to do with an answer that nobody waits for any more; the request is kept for it."""


class Link:
    def __init__(
        self,
        node: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pushed: Callable[[str, object], None],
    ) -> None:
        self._node = node
        self._reader = reader
        self._writer = writer
        self._pushed = pushed
        self._ids = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self.closed = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name=f"link to {node}")

    async def ask(
        self,
        op: str,
        call: Message | None,
        within_s: float,
        *,
        too_late: Callable[[object], None] | None = None,
    ) -> Any:
        """Raises what the node answered, DeadlineExceeded, or PlatformUnavailable when the connection ends first."""
        if self.closed.is_set():
            raise self._gone()
        call_id = next(self._ids)
        asked = _Asked(op, asyncio.get_running_loop().create_future(), too_late)
        self._asked[call_id] = asked
        self._writer.write(wire.line_of({"id": call_id, "op": op, "args": call or {}}))
        try:
            async with asyncio.timeout(within_s):
                return await asked.answer
        except TimeoutError:
            raise DeadlineExceeded(f"node {self._node} did not answer {op!r} within {within_s:g} s") from None
        finally:
            self._no_longer(call_id, asked)

    def _no_longer(self, call_id: int, asked: _Asked) -> None:
        """The caller has its answer, or has given up."""
        if asked.too_late is None or call_id not in self._asked:
            self._asked.pop(call_id, None)
        elif not self.closed.is_set():
            self._writer.write(wire.line_of({"cancel": call_id}))

    def give_up(self, op: str, error: RockError) -> None:
        """Whoever waits for an answer to ``op`` gets the error now."""
        for asked in list(self._asked.values()):
            if asked.op == op and not asked.answer.done():
                asked.answer.set_exception(type(error)(error.message, hint=error.hint))

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while True:
                self._on_frame(await wire.read_frame(self._reader))
        except (PlatformUnavailable, ValidationError) as error:
            log.debug("node=%s %s", self._node, error)
        finally:
            self.closed.set()
            self._writer.close()
            asked, self._asked = self._asked, {}
            for one in asked.values():
                if not one.answer.done():
                    one.answer.set_exception(self._gone())

    def _on_frame(self, frame: dict[str, Any]) -> None:
        if "push" in frame:
            self._pushed(str(frame["push"]), frame.get("value"))
            return
        asked = self._asked.pop(frame["id"], None) if isinstance(frame.get("id"), int) else None
        if asked is None:
            return
        if asked.answer.done():
            if frame.get("ok") and asked.too_late is not None:
                asked.too_late(frame.get("value"))
        elif frame.get("ok"):
            asked.answer.set_result(frame.get("value"))
        else:
            asked.answer.set_exception(from_problem(frame.get("error") or {}))

    def _gone(self) -> PlatformUnavailable:
        return PlatformUnavailable(f"the connection to node {self._node} ended")

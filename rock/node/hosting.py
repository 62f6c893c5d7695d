"""A node in a process of its own, from its settings to its end. Run by ``python -m rock.node`` and by a Ray actor.

Invariants: it serves until it is told to end, or no control has been there for ``alone_s``: then it removes what it
owns, so that nothing outlives its owners. Ended by a signal it leaves its sandboxes to its successor, which adopts
those that are still leased.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rock.domain.backoff import BackoffPolicy
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.node.server import NodeServer
from rock.runtimes.select import choose_runtime
from rock.wire.models import Message
from rock.wire.node_wire import Address

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class HostSettings(Message):
    """What a node's process is told. It holds the token: give it in a file of mode 600, or on standard input."""

    name: str
    instance: str
    home: Path
    run_dir: Path
    listen: str
    """``unix:/path`` or ``host:port``; port 0 for a free one."""
    token: str = ""
    runtime: str = "auto"
    gateway_host: str = "127.0.0.1"
    """Where clients on other machines reach its sandboxes: its own address."""
    notice: Path | None = None
    """Written once it listens, removed at the end: ``{"pid", "address"}``."""
    alone_s: Annotated[float, Field(gt=0)] = 50.0
    capacity: int = 64
    max_starting: int = 4
    start_timeout_s: float = 60.0
    probe_interval_s: float = 0.5
    probe_timeout_s: float = 0.4
    dead_after_s: float = 6.0
    reconcile_interval_s: float = 3.0
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 60.0

    def node_config(self) -> NodeConfig:
        return NodeConfig(
            name=self.name,
            run_dir=self.run_dir,
            capacity=self.capacity,
            max_starting=self.max_starting,
            start_timeout_s=self.start_timeout_s,
            probe_interval_s=self.probe_interval_s,
            probe_timeout_s=self.probe_timeout_s,
            dead_after_s=self.dead_after_s,
            reconcile_interval_s=self.reconcile_interval_s,
            backoff=BackoffPolicy(self.backoff_base_s, self.backoff_cap_s),
            gateway_host=self.gateway_host,
        )


async def host(
    settings: HostSettings,
    *,
    ready: Callable[[Address], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Until it is told to end. ``stop`` set is the signal: sandboxes stay.

    Raises RuntimeUnavailable and InvalidRequest when it cannot begin.
    """
    keep = True
    async with AsyncExitStack() as undo:
        runtime, why = await choose_runtime(settings.runtime, settings.instance, settings.home, settings.name)
        log.info("node=%s runtime=%s because: %s", settings.name, runtime.name, why)
        node = Node(settings.node_config(), runtime)
        undo.push_async_callback(lambda: node.close(keep_sandboxes=keep))
        await node.open()
        server = NodeServer(node, token=settings.token, run_dir=settings.run_dir)
        undo.push_async_callback(server.close)
        address = await server.listen(Address.parse(settings.listen))
        if settings.notice is not None:
            await asyncio.to_thread(_write_notice, settings.notice, address)
            undo.callback(settings.notice.unlink, missing_ok=True)
        ready(address)
        log.info("node=%s listens at %s", settings.name, address)
        keep = await _until_over(settings, server, stop or asyncio.Event())


async def _until_over(settings: HostSettings, server: NodeServer, stop: asyncio.Event) -> bool:
    """Whether its sandboxes are to stay."""
    stopped: asyncio.Future[bool] = asyncio.ensure_future(stop.wait())
    try:
        while server.alone_s < settings.alone_s:
            ends: set[asyncio.Future[bool]] = {stopped, server.close_requested}
            await asyncio.wait(ends, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if server.close_requested.done():
                return server.close_requested.result()
            if stopped.done():
                return True
        log.warning("node=%s no control for %.0f s: it removes its sandboxes and ends", settings.name, settings.alone_s)
        return False
    finally:
        stopped.cancel()


def _write_notice(path: Path, address: Address) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"pid": os.getpid(), "address": str(address)}))
    draft.replace(path)

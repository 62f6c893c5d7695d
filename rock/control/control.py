"""The control plane as its one door, the API, sees it.

It owns the loops of the janitor: leases that expired, leases whose sandbox is gone, history on its way to the store.
Each looks at what is and acts; none depends on having been told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from rock.control.catalog import Catalog, images_of
from rock.control.history import History
from rock.control.keys import KeyRing
from rock.control.leases import LeaseService
from rock.control.nodes import NodeBook
from rock.control.quarantine import QuarantineService
from rock.control.runs import RunService
from rock.domain.clock import Clock, MonotonicClock
from rock.domain.errors import NotFound, RockError
from rock.domain.sandbox import SandboxState
from rock.store.database import Database
from rock.store.fleet import FleetStore
from rock.store.keys import KeyStore
from rock.store.nodes import NodeStore
from rock.store.rhythms import RhythmStore
from rock.store.runs import RunStore
from rock.wire.handle import NodeHandle
from rock.wire.models import (
    EnvView,
    EventView,
    ExecRequest,
    ExecResult,
    Health,
    LogView,
    NodeView,
    PrefetchView,
    RestartRequest,
    RestartView,
    SandboxStats,
    SandboxView,
    TaskList,
)

log = logging.getLogger(__name__)

_PAST = frozenset({SandboxState.FAILED, SandboxState.GONE})


@dataclass(frozen=True, slots=True)
class ControlConfig:
    instance: str
    pools: Mapping[str, int] = field(default_factory=dict)
    """Environments whose pools are filled at the start, and how many ready sandboxes each keeps."""
    expire_every_s: float = 1.0
    reconcile_every_s: float = 3.0
    trim_every_s: float = 600.0
    note_keys_every_s: float = 30.0


class Control:
    def __init__(
        self,
        config: ControlConfig,
        database: Database,
        nodes: Sequence[NodeHandle],
        catalog: Catalog,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._config = config
        self._database = database
        self.nodes = NodeBook(nodes, rng or random.Random(), clock=clock)
        self._catalog = catalog
        self._fleet_store = FleetStore(database)
        self.history = History(self._fleet_store, database.check)
        self.runs = RunService(RunStore(database), RhythmStore(database), self.history)
        self.keys = KeyRing(KeyStore(database))
        self.leases = LeaseService(
            self.nodes,
            self._fleet_store,
            self.history,
            catalog,
            pools=config.pools,
            clock=clock or MonotonicClock(),
        )
        self.quarantine = QuarantineService(self.nodes, self._fleet_store, self.history, clock or MonotonicClock())
        self._began = time.monotonic()
        self._loops: list[asyncio.Task[None]] = []
        self.shutdown_requested = asyncio.Event()
        self.keep_sandboxes = False
        """Whether whoever asked for the shutdown wants the sandboxes kept for the next start."""

    # --- beginning and end

    async def open(self) -> None:
        """Listen to the nodes, recover what was leased, start the loops, fill the pools asked for."""
        self.nodes.listen(self._sandbox_changed, self.history.add_event)
        await self.keys.open()
        await self.quarantine.open()  # before any pool fills: what is refused must not be started first
        await self.leases.recover()
        known = [view.id for view in await self.nodes.sandboxes()]
        await self._fleet_store.close_unfinished_sandboxes(known, datetime.now(UTC))
        for node in self.nodes:
            self.history.add_event(EventView(at=datetime.now(UTC), kind="node.up", subject=node.name, node=node.name))
        await self.nodes.begin(self.leases.losses, NodeStore(self._database))
        await self.leases.warm()
        every = self._config
        self._loops = [
            asyncio.create_task(self.history.run()),
            asyncio.create_task(self._every(every.expire_every_s, self._expire)),
            asyncio.create_task(self._every(every.reconcile_every_s, self.leases.reconcile)),
            asyncio.create_task(self._every(every.reconcile_every_s, self.quarantine.reconcile)),
            asyncio.create_task(self._every(every.trim_every_s, self._fleet_store.trim)),
            asyncio.create_task(self._every(every.trim_every_s, self.leases.snapshots.sweep_all)),
            asyncio.create_task(self._every(every.note_keys_every_s, self.keys.flush)),
        ]

    async def _expire(self) -> None:
        await self.leases.expire()
        await self.leases.store_ended()

    async def _every(self, interval_s: float, action: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await action()
            except RockError as error:
                log.warning("janitor: %s", error)

    def _sandbox_changed(self, view: SandboxView) -> None:
        self.leases.losses.sandbox_changed(view)
        self.history.add_sandbox(view)

    def note(self, kind: str, detail: str) -> None:
        """For the record, of the platform as a whole: ``control.restarted``, ``guardian.restarted``."""
        self.history.add_event(EventView(at=datetime.now(UTC), kind=kind, subject=self._config.instance, detail=detail))

    def request_shutdown(self, *, keep_sandboxes: bool = False) -> None:
        self.keep_sandboxes = keep_sandboxes
        self.refuse_claims()
        self.history.followers.end()
        self.shutdown_requested.set()

    def refuse_claims(self) -> None:
        """Let nobody wait for a sandbox that will never come."""
        self.nodes.stop_placing()
        for node in self.nodes:
            node.refuse_claims()

    async def close(self) -> None:
        """End the loops and write down what waits. The nodes and the database are their owner's to close."""
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.nodes.close()
        await self.leases.close()

    async def write_down(self) -> None:
        """The last words, after the nodes are closed."""
        try:
            await self.leases.store_ended()
            await self.history.flush()
            await self.keys.flush()
        except RockError as error:
            log.error("the last of the history could not be stored: %s", error)

    # --- looking

    async def health(self) -> Health:
        nodes = await self.node_views()
        trouble = [f"node {node.name}: {node.detail}" for node in nodes if not node.healthy]
        if found := self.trouble:
            waiting = f"; {len(self.history)} events and views wait" if len(self.history) else ""
            lost = f"; {self.history.dropped} events were dropped" if self.history.dropped else ""
            trouble.append(f"{found}{waiting}{lost}")
        return Health(
            status="degraded" if trouble else "ok",
            instance=self._config.instance,
            version=_version(),
            uptime_s=time.monotonic() - self._began,
            pid=os.getpid(),
            runtime=", ".join(sorted({node.runtime for node in nodes})),
            database=self._database.kind,
            detail="; ".join(trouble),
        )

    @property
    def trouble(self) -> str:
        """Why nothing can be stored at present; empty when all is well."""
        return self.history.trouble or self._database.trouble

    async def node_views(self) -> list[NodeView]:
        return await self.nodes.views()

    async def events(
        self, *, limit: int = 100, kind: str = "", run_id: str = "", after: int | None = None
    ) -> list[EventView]:
        return await self.history.events(limit=limit, kind=kind, run_id=run_id, after=after)

    # --- sandboxes

    async def sandboxes(self, *, state: SandboxState | None = None, run_id: str = "") -> list[SandboxView]:
        """The living ones, the youngest first; for ``failed`` and ``gone`` also those of the past (at most 500)."""
        found = {view.id: view for view in await self.nodes.sandboxes()}
        chosen = [view for view in found.values() if state is None or view.state is state]
        if state is not None and state in _PAST:
            ids = {view.id for view in chosen}
            chosen += [view for view in await self.history.past_sandboxes(state, run_id) if view.id not in ids]
        chosen = [view for view in chosen if not run_id or view.run_id == run_id]
        return sorted(chosen, key=lambda view: view.created_at, reverse=True)

    async def sandbox(self, sandbox_id: str) -> SandboxView:
        """Living or past."""
        try:
            return (await self.nodes.find(sandbox_id))[1]
        except NotFound:
            return await self.history.sandbox(sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """End it and any lease on it. Idempotent for those that once were; NotFound for those that never were."""
        view = await self.sandbox(sandbox_id)
        ended = await self.leases.release_sandbox(sandbox_id, reason="removed by request")
        if not ended and view.node in self.nodes:
            await self.nodes.get(view.node).release(sandbox_id, reason="removed by request")

    async def restart_sandbox(self, sandbox_id: str, request: RestartRequest) -> RestartView:
        """Replace it: see `Losses.restart`. NotFound for those that never were."""
        return await self.leases.losses.restart(await self.sandbox(sandbox_id), request)

    async def exec(self, sandbox_id: str, request: ExecRequest) -> ExecResult:
        return await (await self._node_of(sandbox_id)).exec(sandbox_id, request)

    async def stats(self, sandbox_id: str) -> SandboxStats:
        return await (await self._node_of(sandbox_id)).stats(sandbox_id)

    async def logs(self, sandbox_id: str, lines: int) -> LogView:
        try:
            node = await self._node_of(sandbox_id)
            return LogView(lines=tuple(await node.logs(sandbox_id, lines)))
        except NotFound:
            view = await self.history.sandbox(sandbox_id)
            return LogView(lines=view.evidence.last_output[-lines:] if view.evidence else ())

    async def _node_of(self, sandbox_id: str) -> NodeHandle:
        return (await self.nodes.find(sandbox_id))[0]

    # --- environments

    async def envs(self) -> list[EnvView]:
        names = await asyncio.to_thread(self._catalog.names)
        return [await asyncio.to_thread(self._catalog.view, name) for name in names]

    async def env(self, name: str) -> EnvView:
        return await asyncio.to_thread(self._catalog.view, name)

    async def tasks(self, name: str, split: str) -> TaskList:
        return TaskList(env=name, split=split, tasks=tuple(await asyncio.to_thread(self._catalog.tasks, name, split)))

    async def prefetch(self, name: str, tasks: Sequence[str]) -> PrefetchView:
        """Have every node fetch, in the background, the images of these tasks and those their judge wants."""
        images = await asyncio.to_thread(images_of, self._catalog, name, tasks)
        if images:
            await self.nodes.prefetch(images)
        return PrefetchView(images=len(images))


def _version() -> str:
    try:
        return version("rock-roll")
    except PackageNotFoundError:
        return "0"

"""The whole platform of one machine: store, runtime, nodes and control, opened and closed in the right order.

One node in this process, unless the settings ask for several processes (:mod:`rock.cluster.process`) or for the nodes
of a Ray cluster (:mod:`rock.cluster.ray`).

``close`` removes everything the instance owns, unless told to keep the sandboxes for the next start; a process that is
killed instead leaves them, and the next ``open`` adopts those that are still leased and sweeps the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from rock.cluster.process import ProcessNodes, end_others
from rock.cluster.settings import PlatformSettings, default_capacity, instance_of, run_dir_of
from rock.control.catalog import Catalog
from rock.control.control import Control, ControlConfig
from rock.control.nodes import NodeBook
from rock.domain.errors import RockError
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.runtimes.base import Runtime
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.select import choose_runtime, make_runtime
from rock.store.database import Database, database_url
from rock.wire.handle import NodeHandle

log = logging.getLogger(__name__)


class NodeSource(Protocol):
    """Where the platform's nodes come from."""

    async def open(self) -> Sequence[NodeHandle]:
        """Those there are at the start, ready to adopt."""
        ...

    def follow(self, book: NodeBook) -> None:
        """From now on tell the book of nodes that come and go."""
        ...

    async def close(self, *, keep_sandboxes: bool = False) -> None:
        """End the nodes."""
        ...


class InProcess:
    """One node, in control's own process."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def open(self) -> Sequence[NodeHandle]:
        await self._node.open()
        return [self._node]

    def follow(self, book: NodeBook) -> None:
        """It never comes or goes."""

    async def close(self, *, keep_sandboxes: bool = False) -> None:
        await self._node.close(keep_sandboxes=keep_sandboxes)


class Platform:
    """Made by :meth:`open`."""

    def __init__(
        self,
        settings: PlatformSettings,
        instance: str,
        runtime: Runtime,
        database: Database,
        source: NodeSource,
        nodes: Sequence[NodeHandle],
        control: Control,
    ) -> None:
        self.settings = settings
        self.instance = instance
        self.runtime = runtime
        """What its nodes use; their own where they are processes of their own."""
        self.nodes = tuple(nodes)
        """Those there were at the start."""
        self.source = source
        self.control = control
        self._database = database

    @property
    def node(self) -> NodeHandle:
        """The first."""
        return self.nodes[0]

    @classmethod
    async def open(
        cls, settings: PlatformSettings, *, runtime: Runtime | None = None, catalog: Catalog | None = None
    ) -> Platform:
        """Raises StorageError, RuntimeUnavailable, InvalidRequest, ImageNotFound (a pool of an unbuilt environment),
        PlatformUnavailable (a node that does not start, a Ray cluster that does not answer).

        ``runtime`` and ``catalog`` replace what the settings would choose: for tests and for embedding.
        """
        instance = await asyncio.to_thread(instance_of, settings.home)
        async with AsyncExitStack() as undo:
            database = await Database.open(database_url(settings.database, settings.home))
            undo.push_async_callback(database.close)
            own = runtime is not None
            if runtime is None and not settings.ray:
                runtime, why = await choose_runtime(settings.runtime, instance, settings.home, settings.node_name)
                log.info("runtime=%s because: %s", runtime.name, why)
            source = await _source(settings, instance, runtime)
            undo.push_async_callback(source.close, keep_sandboxes=True)
            nodes = await source.open()
            if runtime is None:
                runtime = make_runtime((await nodes[0].view()).runtime, instance, settings.home)
                await runtime.close()
            elif not own:
                await _clear_away(settings, instance, runtime.name, {node.name for node in nodes})
            config = ControlConfig(instance, dict(settings.pools))
            control = Control(config, database, nodes, catalog or EnvCatalog(settings.home))
            undo.push_async_callback(control.close)
            await control.open()
            source.follow(control.nodes)
            undo.pop_all()
        log.info("instance=%s runtime=%s database=%s", instance, runtime.name, database.kind)
        return cls(settings, instance, runtime, database, source, nodes, control)

    async def close(self, *, keep_sandboxes: bool = False) -> None:
        self.control.refuse_claims()
        try:
            await self.control.close()
            await self.source.close(keep_sandboxes=keep_sandboxes)
        finally:
            await self.control.write_down()
            await self._database.close()


async def _source(settings: PlatformSettings, instance: str, runtime: Runtime | None) -> NodeSource:
    """``runtime`` is this machine's; None with Ray, whose machines choose for themselves."""
    if runtime is None:
        from rock.cluster.ray import RayNodes

        return RayNodes(settings, instance)
    if not settings.nodes:
        return InProcess(Node(_node_config(settings, instance), runtime))
    await runtime.close()  # each node has its own
    return ProcessNodes(settings, instance, runtime.name)


async def _clear_away(settings: PlatformSettings, instance: str, runtime: str, nodes: Collection[str]) -> None:
    """End what nodes left that are no more: an earlier start may have had more of them, or named them otherwise."""
    await end_others(settings.home, nodes)
    everywhere = make_runtime(runtime, instance, settings.home)
    try:
        for seen in await everywhere.list_owned():
            if seen.node not in nodes:
                log.info("sandbox=%s is of node %r, which is no more; removing it", seen.sandbox_id, seen.node)
                await everywhere.stop(seen.handle)
    except RockError as error:
        log.warning("what earlier nodes left could not be removed yet: %s", error)
    finally:
        await everywhere.close()


def _node_config(settings: PlatformSettings, instance: str) -> NodeConfig:
    return NodeConfig(
        name=settings.node_name,
        run_dir=run_dir_of(settings.home, instance),
        capacity=settings.capacity or default_capacity(),
        max_starting=settings.max_starting,
        start_timeout_s=settings.start_timeout_s,
        probe_interval_s=settings.probe_interval_s,
        probe_timeout_s=settings.probe_timeout_s,
        dead_after_s=settings.dead_after_s,
        reconcile_interval_s=settings.reconcile_interval_s,
        backoff=settings.backoff,
    )

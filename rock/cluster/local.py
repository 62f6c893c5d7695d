"""The whole platform in one process: store, runtime, one node and control, opened and closed in the right order.

``close`` removes everything the instance owns, unless told to keep the sandboxes for the next start; a process that is
killed instead leaves them, and the next ``open`` adopts those that are still leased and sweeps the rest.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from rock.cluster.settings import PlatformSettings, default_capacity, instance_of, run_dir_of
from rock.control.catalog import Catalog
from rock.control.control import Control, ControlConfig
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.runtimes.base import Runtime
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.select import choose_runtime
from rock.store.database import Database, database_url

log = logging.getLogger(__name__)


class Platform:
    """Made by :meth:`open`."""

    def __init__(
        self,
        settings: PlatformSettings,
        instance: str,
        runtime: Runtime,
        database: Database,
        node: Node,
        control: Control,
    ) -> None:
        self.settings = settings
        self.instance = instance
        self.runtime = runtime
        self.node = node
        self.control = control
        self._database = database

    @classmethod
    async def open(
        cls, settings: PlatformSettings, *, runtime: Runtime | None = None, catalog: Catalog | None = None
    ) -> Platform:
        """Raises StorageError, RuntimeUnavailable, InvalidRequest, ImageNotFound (a pool of an unbuilt environment).

        ``runtime`` and ``catalog`` replace what the settings would choose: for tests and for embedding.
        """
        instance = await asyncio.to_thread(instance_of, settings.home)
        async with AsyncExitStack() as undo:
            database = await Database.open(database_url(settings.database, settings.home))
            undo.push_async_callback(database.close)
            if runtime is None:
                runtime, why = await choose_runtime(settings.runtime, instance, settings.home, settings.node_name)
                log.info("runtime=%s because: %s", runtime.name, why)
            node = Node(_node_config(settings, instance), runtime)
            undo.push_async_callback(node.close, keep_sandboxes=True)
            await node.open()
            config = ControlConfig(instance, dict(settings.pools))
            control = Control(config, database, [node], catalog or EnvCatalog(settings.home))
            undo.push_async_callback(control.close)
            await control.open()
            undo.pop_all()
        log.info("instance=%s runtime=%s database=%s", instance, runtime.name, database.kind)
        return cls(settings, instance, runtime, database, node, control)

    async def close(self, *, keep_sandboxes: bool = False) -> None:
        self.control.refuse_claims()
        try:
            await self.control.close()
            await self.node.close(keep_sandboxes=keep_sandboxes)
        finally:
            await self.control.write_down()
            await self._database.close()


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

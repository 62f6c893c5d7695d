"""The nodes of a Ray cluster: ``rock up --ray ADDRESS``. Every machine in it becomes a node of the platform.

On each there is one detached, named actor, bound to the machine and restarted by Ray; in it a thread hosts a node with
its server (:mod:`rock.node.hosting`). Ray starts and restarts; everything else, the calls of control and the data plane
of the clients, goes directly to the machine's address, so Ray is on no path that is hot.

Invariants: every call into Ray has a deadline (a cluster that is gone must not hang control); a machine that joins or
leaves the cluster joins or leaves the book within seconds; a node that control has left alone for long removes what it
owns and takes its actor with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rock.cluster.process import host_settings, token_of
from rock.cluster.remote import RemoteNode
from rock.cluster.settings import PlatformSettings, default_capacity, run_dir_of
from rock.control.nodes import NodeBook
from rock.domain.errors import PlatformUnavailable, RockError, RuntimeUnavailable
from rock.node.hosting import HostSettings, host
from rock.wire.handle import NodeHandle
from rock.wire.node_wire import Address

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 60.0
_CALL_TIMEOUT_S = 10.0
# An actor's process starts in one to five seconds, more on a busy machine.
_START_TIMEOUT_S = 90.0
_WATCH_EVERY_S = 2.0


def import_ray() -> Any:
    """Raises RuntimeUnavailable with the remedy when it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise RuntimeUnavailable(
            "Ray is not installed", hint="pip install 'rock-roll[ray]'", cause=str(error)
        ) from error


async def _within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Run a blocking call of Ray's in a thread. One that hangs is left behind; Ray offers no way to end it."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.to_thread(call)
    except TimeoutError as error:
        raise PlatformUnavailable(f"Ray did not {what} within {seconds:g} s") from error
    except (RuntimeError, ValueError, ConnectionError, OSError) as error:  # what Ray's own errors derive from
        raise PlatformUnavailable(f"Ray could not {what}: {error}", cause=str(error)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] != "ray":
            raise
        raise PlatformUnavailable(f"Ray could not {what}: {error}", cause=str(error)) from error


class NodeActor:
    """Runs in Ray's process on the machine. A new process of it, after a crash, hosts the node again by itself."""

    def __init__(self, settings: str, actor: str, namespace: str) -> None:
        self._settings = HostSettings.model_validate_json(settings)
        self._name, self._namespace = actor, namespace
        self._address = ""
        self._trouble = ""
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._host, name="rock node", daemon=True)
        self._thread.start()

    def address(self) -> tuple[str, str]:
        """Where the node listens, or why it does not (yet)."""
        return self._address, self._trouble

    def pid(self) -> int:
        return os.getpid()

    def _host(self) -> None:
        logging.basicConfig(level=logging.INFO)
        try:
            asyncio.run(self._serve())
        except (RockError, OSError) as error:
            self._trouble = str(error)
            log.error("the node did not start: %s", error)
            return
        finally:
            self._address = ""
        self._end_actor()

    async def _serve(self) -> None:
        ip = import_ray().util.get_node_ip_address()
        here = self._settings
        run_dir = run_dir_of(here.home, here.instance) / here.name
        settings = here.model_copy(
            update={
                "run_dir": run_dir,
                "listen": str(Address(host=ip, port=0)),
                "gateway_host": ip,
                "capacity": here.capacity or default_capacity(),
            }
        )
        await asyncio.to_thread(run_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
        await host(settings, ready=self._ready)

    def _ready(self, address: Address) -> None:
        self._address = str(address)

    def _end_actor(self) -> None:
        """The node has ended in order; Ray must not start it again."""
        ray = import_ray()
        with contextlib.suppress(ValueError):  # control was quicker
            ray.kill(ray.get_actor(self._name, namespace=self._namespace), no_restart=True)


@dataclass(slots=True, eq=False)
class _Machine:
    ray_id: str
    actor: Any
    handle: RemoteNode


class RayNodes:
    def __init__(self, settings: PlatformSettings, instance: str) -> None:
        self._settings = settings
        self._instance = instance
        self._token = token_of(settings.home)
        self._namespace = f"rock-{instance}"
        self._machines: dict[str, _Machine] = {}
        self._watching: asyncio.Task[None] | None = None
        self._ray = import_ray()

    async def open(self) -> Sequence[NodeHandle]:
        await _within(_CONNECT_TIMEOUT_S, f"connect to {self._settings.ray}", self._connect)
        try:
            await asyncio.gather(*(self._add(ray_id) for ray_id in await self._alive()))
        except RockError:
            await self.close(keep_sandboxes=True)
            raise
        return [machine.handle for machine in self._machines.values()]

    def _connect(self) -> None:
        self._ray.init(
            address=self._settings.ray,
            namespace=self._namespace,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )

    async def _alive(self) -> set[str]:
        nodes = await _within(_CALL_TIMEOUT_S, "list its nodes", self._ray.nodes)
        return {str(node["NodeID"]) for node in nodes if node["Alive"]}

    async def _add(self, ray_id: str) -> RemoteNode:
        """Raises PlatformUnavailable when its node does not start."""
        name = f"ray-{ray_id[:8]}"
        actor = await _within(_START_TIMEOUT_S, f"start an actor on {name}", lambda: self._actor(name, ray_id))

        async def locate() -> Address:
            address, trouble = await _within(
                _CALL_TIMEOUT_S, f"ask {name}", lambda: self._ray.get(actor.address.remote(), timeout=_CALL_TIMEOUT_S)
            )
            if not address:
                raise PlatformUnavailable(f"node {name} is not there yet", cause=trouble)
            return Address.parse(address)

        handle = RemoteNode(name, locate, self._token)
        self._machines[name] = _Machine(ray_id, actor, handle)
        try:
            await handle.open(_START_TIMEOUT_S)
        except RockError:
            self._machines.pop(name, None)
            await self._kill(actor)
            raise
        log.info("node=%s is Ray's node %s", name, ray_id)
        return handle

    def _actor(self, name: str, ray_id: str) -> Any:
        """The one that is there, or a new one."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor_name = f"rock-{name}"
        settings = host_settings(
            self._settings,
            self._instance,
            name,
            run_dir=Path(),
            listen="127.0.0.1:0",
            token=self._token,
            runtime=self._settings.runtime,
            capacity=self._settings.capacity,
        )
        options = {
            "name": actor_name,
            "namespace": self._namespace,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            "max_concurrency": 4,
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(ray_id, soft=False),
        }
        remote = self._ray.remote(NodeActor).options(**options)
        return remote.remote(settings.model_dump_json(), actor_name, self._namespace)

    async def _kill(self, actor: Any) -> None:
        with contextlib.suppress(RockError):
            await _within(_CALL_TIMEOUT_S, "end an actor", lambda: self._ray.kill(actor, no_restart=True))

    # --- machines that come and go

    def follow(self, book: NodeBook) -> None:
        self._watching = asyncio.create_task(self._watch(book), name="watch Ray's nodes")

    async def _watch(self, book: NodeBook) -> None:
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            try:
                await self._compare(book)
            except RockError as error:  # the heartbeats still judge the nodes there are
                log.warning("Ray's nodes could not be compared: %s", error)

    async def _compare(self, book: NodeBook) -> None:
        alive = await self._alive()
        known = {machine.ray_id: name for name, machine in self._machines.items()}
        for ray_id, name in known.items():
            if ray_id not in alive:
                log.warning("node=%s has left Ray's cluster", name)
                await book.leave(name, "its machine has left the Ray cluster")
                await self._machines.pop(name).handle.detach()
        for ray_id in alive - known.keys():
            await book.join(await self._add(ray_id))

    async def close(self, *, keep_sandboxes: bool = False) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        machines, self._machines = list(self._machines.values()), {}
        await asyncio.gather(*(self._end(machine, keep_sandboxes) for machine in machines))
        with contextlib.suppress(RockError):
            await _within(_CALL_TIMEOUT_S, "let go", self._ray.shutdown)

    async def _end(self, machine: _Machine, keep_sandboxes: bool) -> None:
        """Its actor ends by itself once the node is closed; it is waited for, then ended."""
        await machine.handle.close(keep_sandboxes=keep_sandboxes)
        deadline = time.monotonic() + _CALL_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                await _within(
                    _CALL_TIMEOUT_S,
                    "ask",
                    lambda: self._ray.get(machine.actor.pid.remote(), timeout=_CALL_TIMEOUT_S),
                )
            except RockError:
                return  # it is gone
            await asyncio.sleep(0.1)
        await self._kill(machine.actor)

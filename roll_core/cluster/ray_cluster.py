"""The Ray cluster that a run uses: its connection, its reservation, its actors. Everything that calls Ray begins here.

Invariants: every wait for Ray has a deadline; a run reserves all it needs before it starts anything, or fails with what
is there and what is missing; when it ends, its actors and its reservation are gone. What dies with a machine is not
restarted by Ray: only the run knows with which weights or checkpoint to begin again. Ray moves the bundle of a machine
that is gone to another as soon as one has room.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from roll_core.cluster.placement import Plan, Seat
from roll_core.errors import PlacementError

_READY_S = 120.0
_GPU_PARTS = 10_000
"""Ray counts in parts of a GPU this small."""
START_S = 600.0
"""An actor's process imports torch, or vLLM, and may have to wait for its bundle to be moved."""


def import_ray() -> Any:
    """Raises PlacementError with the remedy when it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise PlacementError(
            "placement.ray needs Ray, which is not installed: pip install 'rock-roll[ray]'."
        ) from error


class RayCluster:
    def __init__(self, address: str, plan: Plan) -> None:
        """Connects and reserves; blocks. Raises PlacementError when either cannot be had."""
        self.ray = import_ray()
        self.plan = plan
        self._actors: list[Any] = []
        self._closing = contextlib.ExitStack()
        self._connected = not self.ray.is_initialized()
        try:
            self.ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise PlacementError(
                f"There is no Ray cluster at {address!r}: {error}. Start one with `ray start --head`, or leave "
                "placement.ray (--ray) out."
            ) from error
        self._group = self._reserve()

    def _reserve(self) -> Any:
        from ray.util.placement_group import placement_group, remove_placement_group

        bundles = [dict(bundle) for bundle in self.plan.bundles]
        if not bundles:
            return None
        group = placement_group(bundles, strategy=self.plan.strategy)
        try:
            self.ray.get(group.ready(), timeout=_READY_S)
        except self.ray.exceptions.RayError as error:
            remove_placement_group(group)
            have = {k: v for k, v in self.ray.available_resources().items() if k in ("CPU", "GPU")}
            raise PlacementError(
                f"Ray could not reserve {bundles} within {_READY_S:g} s; free in the whole cluster: {have}. Add "
                "machines, or lower engine.count, learner.processes or placement.cpus."
            ) from error
        return group

    def actor(self, cls: type, seat: Seat, *args: Any, concurrency: int = 1) -> Any:
        """A new actor in the seat's bundle; returns its handle at once, whether or not it can start yet."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert seat.bundle is not None, f"{seat.role} has no place on Ray"
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=seat.bundle)
        remote = self.ray.remote(cls).options(
            num_cpus=seat.cpus,
            num_gpus=math.floor(seat.gpus * _GPU_PARTS) / _GPU_PARTS,  # three thirds must not be more than one
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=concurrency,
            scheduling_strategy=strategy,
        )
        actor = remote.remote(*args)
        self._actors.append(actor)
        return actor

    @property
    def address_here(self) -> str:
        """This machine's, as Ray knows it."""
        address: str = self.ray.util.get_node_ip_address()
        return address

    def all_here(self, seats: Sequence[Seat]) -> bool:
        """Whether these seats' bundles are on this machine, as it is now."""
        from ray.util.placement_group import placement_group_table

        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in self.ray.nodes()}
        bundles = placement_group_table(self._group)["bundles_to_node_id"]
        return all(nodes.get(bundles[seat.bundle]) == self.address_here for seat in seats)

    def end(self, actor: Any) -> None:
        """Kill an actor. One that is dead already may be given."""
        if actor in self._actors:
            self._actors.remove(actor)
        with contextlib.suppress(self.ray.exceptions.RayError, ValueError):
            self.ray.kill(actor, no_restart=True)

    def closes(self, close: Callable[[], None]) -> None:
        """Call it when the run's use of the cluster ends."""
        self._closing.callback(close)

    def close(self) -> None:
        from ray.util.placement_group import remove_placement_group

        for actor in list(self._actors):
            self.end(actor)
        if self._group is not None:
            with contextlib.suppress(self.ray.exceptions.RayError):
                remove_placement_group(self._group)
            self._group = None
        self._closing.close()
        if self._connected:
            self.ray.shutdown()

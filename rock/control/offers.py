"""What a request for a lease gets: the sandbox's spec, how it recovers, and a warm pool from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rock.control.catalog import Catalog
from rock.control.nodes import NodeBook
from rock.domain.clock import Clock
from rock.domain.errors import InvalidRequest
from rock.wire.models import EnvView, LeaseRequest, PoolSize, Recovery, SandboxSpec

_FRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Offer:
    spec: SandboxSpec
    """Without an image the node that is chosen says which."""
    recovery: Recovery = "none"
    env: EnvView | None = None
    """The environment asked for; None for a plain sandbox."""
    task: str = ""
    """The only one that can be played in it; empty: any."""


class Offers:
    """``pools``: how many ready sandboxes to keep of an environment, where somebody said so."""

    def __init__(self, nodes: NodeBook, catalog: Catalog, pools: Mapping[str, int], clock: Clock) -> None:
        self._nodes = nodes
        self._catalog = catalog
        self._pool_sizes = dict(pools)
        self._clock = clock
        self._pools: dict[str, tuple[SandboxSpec, PoolSize]] = {}
        self._known: dict[str, tuple[float, Offer]] = {}

    async def of(self, request: LeaseRequest) -> Offer:
        if request.env:
            if request.image or request.spec is not None:
                raise InvalidRequest("a lease names either an environment or an image, not both", hint="Drop one.")
            offer = await self._env(request.env, request.task)
            return _possible(replace(offer, recovery=request.recovery or offer.recovery))
        if request.spec is not None:
            if request.image and request.image != request.spec.image:
                raise InvalidRequest(f"image {request.image!r} is not that of the spec, {request.spec.image!r}")
            return _possible(Offer(request.spec, request.recovery or "none"))
        return _possible(Offer(SandboxSpec(image=request.image), request.recovery or "none"))

    async def _env(self, env: str, task: str) -> Offer:
        """Reading an environment's files costs more than a claim; a new build may be seen this little later.

        A task with an image of its own has no pool: what waits in one would wait for this task alone.
        """
        now = self._clock.now()
        known = self._known.get(env)
        if known is None or now - known[0] >= _FRESH_S:
            spec = await asyncio.to_thread(self._catalog.spec, env)
            view = await asyncio.to_thread(self._catalog.view, env)
            self._known[env] = known = (now, Offer(spec, view.recovery, view))
        offer = known[1]
        if task and offer.env is not None and offer.env.task_images:
            own = await asyncio.to_thread(self._catalog.task_spec, env, task)
            if own is not None:
                return replace(offer, spec=own, task=task)
        await self._keep_warm(env, offer.spec)
        return offer

    async def _keep_warm(self, env: str, spec: SandboxSpec) -> None:
        """The first lease of an environment fills its pool; a newly built one drains the pool of its predecessor."""
        before = self._pools.get(env)
        if before is not None and before[0] == spec:
            return
        size = await asyncio.to_thread(self._catalog.pool_size, env)
        if (ready := self._pool_sizes.get(env)) is not None:
            size = size.model_copy(update={"ready": ready})
        self._pools[env] = (spec, size)
        if before is not None:
            await self._nodes.set_pool(before[0], 0)
        await self._nodes.set_pool(spec, size.ready, minimum=size.minimum, maximum=size.maximum)

    async def warm(self) -> None:
        """Fill the pools that were asked for at the start; none of them if one cannot be."""
        specs = {env: await asyncio.to_thread(self._catalog.spec, env) for env in self._pool_sizes}
        for env, spec in specs.items():
            await self._keep_warm(env, spec)


def _possible(offer: Offer) -> Offer:
    if offer.recovery == "snapshot" and offer.spec.read_only:
        what = f"environment {offer.env.name!r}" if offer.env is not None else "a sandbox with a read-only root"
        raise InvalidRequest(
            f"{what} cannot recover by snapshots: with a read-only root there is nothing to keep",
            hint="Set [sandbox] read_only = false in env.toml and have the environment write its state to the root "
            '(/var/tmp, say), or declare recovery = "replay".',
        )
    return offer

"""What a node takes over from an earlier process of itself.

Invariants: a sandbox that a stored lease holds is never removed here: whether it still lives is for supervision to find
out, with its evidence; one that nobody holds is kept only if a pool wants it and no lease has ever had it (its guest
was never bound), because sandboxes are single-use; everything else is an orphan, which the first comparison removes.
Nothing here waits for a guest's answer or for a removal, so that claims and heartbeats are served again at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rock.domain.errors import RockError
from rock.domain.sandbox import SandboxState
from rock.domain.sizing import PoolLimits
from rock.node import starting
from rock.node.config import NodeConfig
from rock.node.fleet import Fleet
from rock.node.quarantine import QuarantineNote
from rock.node.record import Grant, Record
from rock.node.supervisor import Supervisor
from rock.runtimes.base import Observed, Runtime
from rock.wire.handle import HeldLease
from rock.wire.models import SandboxSpec

log = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 5.0


class PoolNotes:
    """The pools a node was told to keep, on disk beside its sockets: what waits in them outlives the node's process.
    Blocking."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "pools"

    def note(self, spec: SandboxSpec, limits: PoolLimits) -> None:
        """A note that cannot be written is missed only after a restart."""
        path = self._folder / f"{spec.digest}.json"
        try:
            if limits == PoolLimits():
                path.unlink(missing_ok=True)
                return
            self._folder.mkdir(exist_ok=True)
            content = {"limits": asdict(limits), "spec": spec.model_dump(mode="json")}
            path.with_suffix(".new").write_text(json.dumps(content))
            path.with_suffix(".new").replace(path)
        except OSError as error:
            log.warning("a pool could not be noted in %s: %s", path, error.strerror)

    def read(self) -> dict[str, tuple[SandboxSpec, PoolLimits]]:
        """By the specs' digests. What cannot be understood was written by another version and counts as none."""
        found = {}
        for path in self._folder.glob("*.json"):
            try:
                raw = json.loads(path.read_text())
                spec, limits = SandboxSpec.model_validate(raw["spec"]), PoolLimits(**raw["limits"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("the note of a pool %s is not understood: %s", path, error)
                continue
            found[spec.digest] = (spec, limits)
        return found


@dataclass(frozen=True, slots=True)
class Adoption:
    config: NodeConfig
    runtime: Runtime
    fleet: Fleet
    supervisor: Supervisor

    async def adopt(self, held: Sequence[HeldLease]) -> list[str]:
        """The ids of the leases whose sandbox exists. Raises what the runtime's listing raises."""
        by_sandbox = {lease.sandbox_id: lease for lease in held}
        owned = await self.runtime.list_owned()
        pools = await asyncio.to_thread(PoolNotes(self.config.run_dir).read)
        self.fleet.quarantine.restore(await asyncio.to_thread(QuarantineNote(self.config.run_dir).read))
        for spec, limits in pools.values():
            self.fleet.pool(spec).sizer.limits = limits
        leased = [(seen, by_sandbox[seen.sandbox_id]) for seen in owned if seen.sandbox_id in by_sandbox]
        await asyncio.gather(*(self._adopt_leased(seen, lease) for seen, lease in leased))
        self._adopt_unleased([seen for seen in owned if seen.sandbox_id not in by_sandbox], pools)
        await asyncio.to_thread(self._sweep_directories)
        return [lease.lease_id for _, lease in leased]

    async def _adopt_leased(self, seen: Observed, lease: HeldLease) -> None:
        record = self._record(seen, lease.spec, SandboxState.LEASED, lease.created_at)
        client = await starting.connect(record.socket_path) if seen.running else None
        grant = Grant(lease.lease_id, lease.token_sha256, lease.epoch, lease.run_id)
        self.fleet.adopt(record, grant)
        self.fleet.emit("sandbox.adopted", record.id, f"still held by lease {lease.lease_id}", lease.run_id)
        if client is not None:
            self.supervisor.hold(record, client)
        else:
            self.supervisor.spawn(self.supervisor.examine(record, "nobody answered after the restart"))

    def _adopt_unleased(self, seen: Sequence[Observed], pools: Mapping[str, tuple[SandboxSpec, PoolLimits]]) -> None:
        for one in seen:
            if one.running and not one.paused and one.spec_digest in pools:
                spec, _ = pools[one.spec_digest]
                record = self._record(one, spec, SandboxState.STARTING, datetime.now(UTC))
                self.fleet.adopt_starting(record)
                self.supervisor.spawn(self._prove(record))

    def _record(self, seen: Observed, spec: SandboxSpec, state: SandboxState, created_at: datetime) -> Record:
        shared_dir = self.config.run_dir / seen.sandbox_id
        record = Record(seen.sandbox_id, spec, shared_dir, state, created_at, datetime.now(UTC))
        record.handle = seen.handle
        record.health.oom_kills = seen.oom_kills  # told by the process that was here before
        return record

    async def _prove(self, record: Record) -> None:
        """To the shelf, by the way that every new one takes; or away."""
        why = "a lease has had it"
        try:
            client = await starting.resume(self.runtime, record, self.config.start_timeout_s)
            if (await client.call("hello", timeout_s=_HELLO_TIMEOUT_S)).get("epoch") == 0:
                self.supervisor.hold(record, client)
                self.fleet.became_ready(record, None)
                self.supervisor.wake()
                return
            await client.close()
        except (RockError, OSError) as error:
            why = str(error)
        if record.state is SandboxState.STARTING:
            self.fleet.emit("sandbox.orphan", record.id, f"left behind by an earlier process; removed: {why}")
            self.supervisor.release(record)

    def _sweep_directories(self) -> None:
        for path in self.config.run_dir.iterdir():
            if path.name.startswith("sb-") and path.name not in self.fleet.records:
                shutil.rmtree(path, ignore_errors=True)

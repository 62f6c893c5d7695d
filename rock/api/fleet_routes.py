"""Routes of the fleet: health, nodes, sandboxes, leases, environments, events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request

from rock.api.rules import CALLER
from rock.control.control import Control
from rock.control.keys import OWNER
from rock.domain.sandbox import SandboxState
from rock.wire.models import (
    EnvView,
    EventView,
    ExecRequest,
    ExecResult,
    Health,
    LeaseRequest,
    LeaseView,
    LogView,
    PrefetchRequest,
    PrefetchView,
    RecoverRequest,
    RecoveryReport,
    RestartRequest,
    RestartView,
    SandboxStats,
    SandboxView,
    SnapshotRequest,
    SnapshotView,
    TaskList,
)

SandboxId = Annotated[str, Path(description="`sb-…`", max_length=64)]
LeaseId = Annotated[str, Path(description="`ls-…`", max_length=64)]
EnvName = Annotated[str, Path(max_length=255)]


def fleet_router(control: Control) -> APIRouter:
    router = APIRouter()
    for add in (_platform, _sandboxes, _leases, _envs):
        add(router, control)
    return router


def _platform(router: APIRouter, control: Control) -> None:
    @router.get("/health", tags=["platform"], summary="Is it well?")
    async def health() -> Health:
        return await control.health()

    @router.get("/events", tags=["platform"], summary="What happened")
    async def events(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        kind: str = "",
        run_id: str = "",
        after: Annotated[int | None, Query(ge=0, description="Only events after this id.")] = None,
    ) -> list[EventView]:
        """The newest first; with `after`, the ones after that id, oldest first, for following along."""
        return await control.events(limit=limit, kind=kind, run_id=run_id, after=after)

    @router.post("/shutdown", status_code=202, tags=["platform"], summary="Stop the platform and what it owns")
    async def shutdown(
        keep_sandboxes: Annotated[bool, Query(description="Leave them for the next start to adopt.")] = False,
    ) -> Health:
        answer = await control.health()
        control.request_shutdown(keep_sandboxes=keep_sandboxes)
        return answer


def _sandboxes(router: APIRouter, control: Control) -> None:
    @router.get("/sandboxes", tags=["sandboxes"], summary="The living sandboxes, or those of a state")
    async def sandboxes(state: SandboxState | None = None, run_id: str = "") -> list[SandboxView]:
        """The youngest first. `failed` and `gone` include those of the past, with their evidence, at most 500."""
        return await control.sandboxes(state=state, run_id=run_id)

    @router.get("/sandboxes/{sandbox_id}", tags=["sandboxes"], summary="One sandbox, living or past")
    async def sandbox(sandbox_id: SandboxId) -> SandboxView:
        return await control.sandbox(sandbox_id)

    @router.delete("/sandboxes/{sandbox_id}", status_code=204, tags=["sandboxes"], summary="End and remove a sandbox")
    async def remove(sandbox_id: SandboxId) -> None:
        """Ends the lease that holds it, too."""
        await control.remove_sandbox(sandbox_id)

    @router.post("/sandboxes/{sandbox_id}/restart", tags=["sandboxes"], summary="Replace a sandbox")
    async def restart(sandbox_id: SandboxId, request: RestartRequest) -> RestartView:
        """Sandboxes are single-use: it is ended, and a lease on it that recovers goes on in another, as when its node
        is drained; that is no loss to it. `conflict` when the lease does not recover, unless `force` lets it be lost;
        and when the sandbox is starting, or has ended. One that nobody holds is ended, and its pool starts another."""
        return await control.restart_sandbox(sandbox_id, request)

    @router.post("/sandboxes/{sandbox_id}/exec", tags=["sandboxes"], summary="Run a command in a leased sandbox")
    async def execute(sandbox_id: SandboxId, request: ExecRequest) -> ExecResult:
        """`conflict` when nobody holds it: what waits in the warm pool must stay untouched."""
        return await control.exec(sandbox_id, request)

    @router.get("/sandboxes/{sandbox_id}/stats", tags=["sandboxes"], summary="What it takes at this moment")
    async def stats(sandbox_id: SandboxId) -> SandboxStats:
        """Counted from outside, by the kernel. `not-found` for one that does not live."""
        return await control.stats(sandbox_id)

    @router.get("/sandboxes/{sandbox_id}/logs", tags=["sandboxes"], summary="The last lines of its output")
    async def logs(sandbox_id: SandboxId, lines: Annotated[int, Query(ge=1, le=10_000)] = 100) -> LogView:
        return await control.logs(sandbox_id, lines)


def _leases(router: APIRouter, control: Control) -> None:
    @router.post("/leases", status_code=201, tags=["leases"], summary="Take a sandbox")
    async def create(
        http: Request,
        request: LeaseRequest,
        idempotency_key: Annotated[
            str, Header(max_length=128, description="Asked again with it, the answer is the same lease.")
        ] = "",
    ) -> LeaseView:
        """Waits up to `wait_s`. Without `env`, `image` and `spec` it is a plain sandbox of the runtime's default image.
        The token in the answer is shown this once; a client that lost the answer asks again with the same
        `Idempotency-Key` within ten minutes."""
        return await control.leases.create(request, http.scope.get(CALLER, OWNER), once=idempotency_key)

    @router.delete("/leases", status_code=204, tags=["leases"], summary="Withdraw what was asked for")
    async def withdraw(
        http: Request,
        idempotency_key: Annotated[str, Header(min_length=1, max_length=128, description="What it was asked with.")],
    ) -> None:
        """For a client that gave up before the answer: its claim must not stay queued and be granted to nobody."""
        await control.leases.withdraw(http.scope.get(CALLER, OWNER), idempotency_key)

    @router.get("/leases", tags=["leases"], summary="The living leases")
    async def leases() -> list[LeaseView]:
        return control.leases.views()

    @router.post("/leases/{lease_id}/heartbeat", tags=["leases"], summary="Prolong a lease by its time-to-live")
    async def heartbeat(lease_id: LeaseId) -> LeaseView:
        """`lease-expired` when it has ended; `sandbox-lost` when its sandbox failed, saying how."""
        return control.leases.heartbeat(lease_id)

    @router.post("/leases/{lease_id}/recover", tags=["leases"], summary="Get another sandbox for one that was lost")
    async def recover(lease_id: LeaseId, request: RecoverRequest) -> LeaseView:
        """Waits until the lease is bound to another sandbox, under a higher epoch; for one that is past the given epoch
        it answers at once. `recovering` after `wait_s`: ask again. `sandbox-lost` when there is none to be had, the
        lease does not recover, or it lost too many."""
        return await control.leases.rebind(lease_id, request)

    @router.post("/leases/{lease_id}/recovered", status_code=204, tags=["leases"], summary="Say how it went on")
    async def recovered(lease_id: LeaseId, report: RecoveryReport) -> None:
        """For the events and the metrics; nothing depends on it."""
        control.leases.recovered(lease_id, report)

    @router.post("/leases/{lease_id}/snapshot", tags=["leases"], summary="Keep its sandbox's files as they are now")
    async def snapshot(lease_id: LeaseId, request: SnapshotRequest) -> SnapshotView:
        """For leases whose recovery is `snapshot`; between two steps. The one before it is removed. When the sandbox is
        lost the next one is made of it. `invalid-request` where there is nothing to keep: a read-only root, or a
        runtime without images; `storage-error` when the disk is almost full."""
        return await control.leases.snapshots.take(lease_id, request)

    @router.delete("/leases/{lease_id}/snapshot", status_code=204, tags=["leases"], summary="Forget its snapshot")
    async def forget_snapshot(
        lease_id: LeaseId, name: Annotated[str, Query(max_length=255, description="Another one of the lease stays.")]
    ) -> None:
        """Its holder has begun another episode."""
        await control.leases.snapshots.forget(lease_id, name)

    @router.delete("/leases/{lease_id}", status_code=204, tags=["leases"], summary="Give the sandbox back")
    async def release(lease_id: LeaseId) -> None:
        """The sandbox is removed: no sandbox is used twice."""
        await control.leases.release(lease_id)


def _envs(router: APIRouter, control: Control) -> None:
    @router.get("/envs", tags=["environments"], summary="The environments, built or not")
    async def envs() -> list[EnvView]:
        return await control.envs()

    @router.get("/envs/{name}", tags=["environments"], summary="One environment")
    async def env(name: EnvName) -> EnvView:
        return await control.env(name)

    @router.get("/envs/{name}/tasks", tags=["environments"], summary="The tasks of a split")
    async def tasks(name: EnvName, split: str = "train") -> TaskList:
        return await control.tasks(name, split)

    @router.post("/envs/{name}/prefetch", status_code=202, tags=["environments"], summary="Tasks that come soon")
    async def prefetch(name: EnvName, request: PrefetchRequest) -> PrefetchView:
        """Every node fetches and makes the images of these tasks, and those of their judge, in the background, one at a
        time; where tasks have no images of their own nothing is done. What fails is told when a lease wants it."""
        return await control.prefetch(name, request.tasks)

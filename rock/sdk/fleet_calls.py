"""What `Rock` asks about the fleet: nodes, sandboxes, leases, environments, quarantine. A call each, no state."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from urllib.parse import quote

from rock.domain.sandbox import SandboxState
from rock.sdk.transport import Transport, part
from rock.wire.models import (
    EnvView,
    ExecRequest,
    ExecResult,
    Health,
    LeaseRequest,
    LeaseView,
    LogView,
    NodeUpdate,
    NodeView,
    PrefetchRequest,
    PrefetchView,
    QuarantineView,
    RestartRequest,
    RestartView,
    SandboxStats,
    SandboxView,
    TaskFailure,
    TaskList,
)


class FleetCalls:
    """Part of :class:`rock.sdk.Rock`, whose text holds for every method here."""

    _transport: Transport

    async def health(self) -> Health:
        """Whether the platform is well, what it runs on and since when."""
        return await self._transport.get(Health, "health")

    async def nodes(self) -> list[NodeView]:
        """Every node with its load and its warm pools."""
        return await self._transport.get(list[NodeView], "nodes")

    async def cordon(self, name: str, reason: str = "") -> NodeView:
        """Give a node no new leases; those it has go on. Raises NotFound (caller)."""
        return await self._node(name, "cordon", reason)

    async def uncordon(self, name: str) -> NodeView:
        """Let a cordoned or drained node take leases again. Raises NotFound (caller)."""
        return await self._node(name, "uncordon")

    async def drain(self, name: str, reason: str = "") -> NodeView:
        """Empty a node: leases that recover move, others are waited for. Answers at once; ``standing_detail`` begins
        with ``empty`` when nothing is left. Raises NotFound (caller)."""
        return await self._node(name, "drain", reason)

    async def _node(self, name: str, action: str, reason: str = "") -> NodeView:
        view: NodeView = await self._transport.request(
            "POST", f"nodes/{part(name)}/{action}", body=NodeUpdate(reason=reason), kind=NodeView, idempotent=True
        )
        return view

    async def sandboxes(
        self, *, state: SandboxState | str | None = None, run_id: str | None = None
    ) -> list[SandboxView]:
        """Sandboxes, the youngest first; only those in ``state`` or of the run if given."""
        return await self._transport.get(list[SandboxView], "sandboxes", state=state, run_id=run_id)

    async def sandbox_view(self, sandbox_id: str) -> SandboxView:
        """One sandbox with its evidence if it failed. Raises NotFound (caller)."""
        return await self._transport.get(SandboxView, f"sandboxes/{part(sandbox_id)}")

    async def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        """What a living sandbox takes: processor, memory, processes, disk. Raises NotFound (caller)."""
        return await self._transport.get(SandboxStats, f"sandboxes/{part(sandbox_id)}/stats")

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Kill and remove a sandbox, whoever holds it. Raises NotFound (caller)."""
        await self._transport.request("DELETE", f"sandboxes/{part(sandbox_id)}", idempotent=True)

    async def restart_sandbox(
        self, sandbox_id: str, *, force: bool = False, reason: str = "", wait_s: float = 0.0
    ) -> RestartView:
        """End a sandbox and let whoever holds it go on in another; one that nobody holds is ended, and its pool starts
        another. Needs a key of scope ``admin``.

        Args:
            force: end it even if the lease on it does not recover; that is lost then, and its episode void.
            reason: for the events and the holder.
            wait_s: how long to wait, at most 60 s, for the sandbox that takes its place, to learn its id.

        Raises: NotFound (caller), Conflict (caller: it has ended, is starting, or its lease does not recover).
        """
        view: RestartView = await self._transport.request(
            "POST",
            f"sandboxes/{part(sandbox_id)}/restart",
            body=RestartRequest(force=force, reason=reason, wait_s=wait_s),
            kind=RestartView,
            timeout_s=wait_s + 30,
        )
        return view

    async def logs(self, sandbox_id: str, *, lines: int = 200) -> LogView:
        """The last lines its guest and environment printed; kept after its death. Raises NotFound (caller)."""
        return await self._transport.get(LogView, f"sandboxes/{part(sandbox_id)}/logs", lines=lines)

    async def exec(self, sandbox_id: str, request: ExecRequest | Sequence[str]) -> ExecResult:
        """Run one program in a leased sandbox, whoever holds it.

        Raises: NotFound (caller: no such sandbox or program), Conflict (caller: it is not leased, and what waits in the
        warm pool must stay untouched), SandboxLost (platform).
        """
        wanted = request if isinstance(request, ExecRequest) else ExecRequest(argv=tuple(request))
        result: ExecResult = await self._transport.request(
            "POST", f"sandboxes/{part(sandbox_id)}/exec", body=wanted, kind=ExecResult, timeout_s=wanted.timeout_s + 10
        )
        return result

    # --- leases

    async def leases(self) -> list[LeaseView]:
        """The leases held now, without their tokens."""
        return await self._transport.get(list[LeaseView], "leases")

    async def create_lease(self, request: LeaseRequest) -> LeaseView:
        """A lease without the session around it: nobody beats for it, so it ends after ``ttl_s``.

        Raises: as :meth:`EnvSession.open`.
        """
        view: LeaseView = await self._transport.request(
            "POST",
            "leases",
            body=request,
            kind=LeaseView,
            timeout_s=request.wait_s + 30,
            once=secrets.token_hex(8),
        )
        return view

    async def release_lease(self, lease_id: str) -> None:
        """End a lease; its sandbox is removed. Raises NotFound (caller)."""
        await self._transport.request("DELETE", f"leases/{part(lease_id)}", idempotent=True)

    # --- environments

    async def envs(self) -> list[EnvView]:
        """Every environment known, built or not."""
        return await self._transport.get(list[EnvView], "envs")

    async def env_view(self, name: str) -> EnvView:
        """One environment. Raises NotFound (caller)."""
        return await self._transport.get(EnvView, f"envs/{part(name)}")

    async def tasks(self, env: str, split: str = "train") -> TaskList:
        """The tasks of a split. Raises NotFound (caller: environment or split), ImageNotFound (caller: not built)."""
        return await self._transport.get(TaskList, f"envs/{part(env)}/tasks", split=split)

    async def prefetch(self, env: str, tasks: Sequence[str]) -> int:
        """Say that these tasks, at most 256, will be played soon: nodes make their images meanwhile, in the background.

        Returns how many images that are, the judge's included; 0 where tasks have none of their own. Raises NotFound
        (caller).
        """
        body = PrefetchRequest(tasks=tuple(tasks))
        view: PrefetchView = await self._transport.request(
            "POST", f"envs/{part(env)}/prefetch", body=body, kind=PrefetchView, idempotent=True
        )
        return view.images

    # --- quarantine

    async def quarantine(self) -> list[QuarantineView]:
        """The images and tasks that are refused because they failed again and again, the youngest first."""
        return await self._transport.get(list[QuarantineView], "quarantine")

    async def clear_quarantine(self, subject: str) -> None:
        """Try an image (its pool's digest) or a task (``environment/task``) again. Raises NotFound (caller)."""
        await self._transport.request("DELETE", f"quarantine/{quote(subject)}", idempotent=True)

    async def report_task_failure(
        self, env: str, task: str, reason: str, *, elapsed_s: float = 0.0
    ) -> QuarantineView | None:
        """Say that the environment itself failed at a task. Sessions do it for an EnvironmentError of ``reset``.

        Args:
            reason: what it said.
            elapsed_s: how long ago the call that failed began; failures side by side count as one.

        Returns the task's quarantine if it is in it by now: the third failure within an hour does that. Leave it out.
        """
        failure = TaskFailure(env=env, task=task, reason=reason[:2000], elapsed_s=elapsed_s)
        view: QuarantineView | None = await self._transport.request(
            "POST", "quarantine/tasks", body=failure, kind=QuarantineView | None
        )
        return view

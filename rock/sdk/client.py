"""`Rock`: the client of one platform. Everything the API offers as a method, environments and sandboxes as sessions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

from pydantic import ValidationError

from rock.domain.errors import InvalidRequest, NotFound
from rock.domain.outcome import LedgerState
from rock.domain.sandbox import SandboxState
from rock.sdk.following import follow
from rock.sdk.hedging import Hedge, ResetTimes
from rock.sdk.home import comes_back, resolve_url
from rock.sdk.lease import HeldLease
from rock.sdk.recovery import Patience
from rock.sdk.sandbox import Sandbox
from rock.sdk.session import EnvSession
from rock.sdk.transport import Transport
from rock.wire.models import (
    EnvView,
    EpisodePage,
    EpisodeRecord,
    EventView,
    ExecRequest,
    ExecResult,
    Health,
    KeyCreate,
    KeyView,
    LatencyView,
    LeaseRequest,
    LeaseView,
    LedgerView,
    Limits,
    LogView,
    MetricPoint,
    NodeUpdate,
    NodeView,
    QuarantineView,
    Recovery,
    RestartRequest,
    RestartView,
    RunCreate,
    RunUpdate,
    RunView,
    SandboxSpec,
    SandboxStats,
    SandboxView,
    Scope,
    TaskFailure,
    TaskList,
)
from rock.wire.rhythm import EpisodeRhythm, RhythmView
from rock.wire.secrets import secret

DEFAULT_TIMEOUT_S = 30.0
EPISODES_PER_REQUEST = 200
# A judge runs whole test suites in its one step, and says itself what takes too long.
JUDGE_STEP_S = 600.0


class Rock:
    """The client of one platform.

    >>> import asyncio
    >>> from rock.sdk import Rock
    >>> async def main():
    ...     async with Rock() as rock:
    ...         async with rock.env("alfworld", seed=1) as env:
    ...             observation, info = await env.reset()
    ...             observation, reward, terminated, truncated, info = await env.step("look")
    >>> asyncio.run(main())   # doctest: +SKIP

    Args:
        url: address of the platform. Default: ``ROCK_URL``, else the platform that runs from ``$ROCK_HOME``; where
            that is not set, the one that runs from ``~/.rock``, else http://127.0.0.1:7625.
        key: API key. Default: ``ROCK_KEY``, else what the file named by ``ROCK_KEY_FILE`` holds.
        timeout_s: how long the platform may take for one request.
        retry_s: for how long a platform that cannot be reached is tried again. Default: 30 s if it has answered before,
            or its guardian runs here and starts it again; else 3 s.

    Raises PlatformUnavailable if ``$ROCK_HOME`` is set, no platform runs from there, and no address is given.
    Every method raises PlatformUnavailable (nobody answers at the address: start it with ``rock up -d``),
    DeadlineExceeded (platform: no answer within ``timeout_s``), Unauthorized (caller: the key) and StorageError
    (platform: its database or disk), and beside these what its own text says.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_s: float | None = None,
    ) -> None:
        self.url = resolve_url(url)
        key = secret("ROCK_KEY") if key is None else key
        known = comes_back(self.url)
        self._transport = Transport(self.url, key, timeout_s=timeout_s, retry_s=retry_s, known=known)
        self._reset_times: dict[str, ResetTimes] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections to the platform. Sessions close themselves at the end of their own blocks."""
        await self._transport.close()

    # --- environments and sandboxes ----------------------------------------------------------------------------------

    def env(
        self,
        name: str,
        *,
        task: str = "",
        seed: int = 0,
        run_id: str = "",
        options: Mapping[str, Any] | None = None,
        wait_s: float = 60.0,
        ttl_s: float = 60.0,
        needs_s: float = 0.0,
        reset_timeout_s: float = 60.0,
        step_timeout_s: float = 30.0,
        recovery_timeout_s: float = 60.0,
        recovery: Recovery | None = None,
        snapshot_every: int | None = None,
        hedge_reset: Hedge = False,
        labels: Mapping[str, str] | None = None,
    ) -> EnvSession:
        """An environment in a sandbox of its own; use it with ``async with``. Nothing is asked for before that.

        Args:
            name: name of a built environment (``rock env list``).
            task: id of the task (``rock env tasks NAME``); empty leaves the choice to the environment.
            seed: with the task it decides the whole episode.
            run_id: the training run the sandbox is booked on.
            options: passed to the environment's ``reset``.
            wait_s: how long to wait for a sandbox before CapacityExceeded.
            ttl_s: the sandbox is taken back this long after this process fell silent.
            needs_s: how long it will be held at most, and then is taken back; 0: no limit. Less than the environment
                declares for an episode, its scoring and its clean-up is refused with InvalidRequest.
            reset_timeout_s, step_timeout_s: default time-outs of ``reset`` and of ``step`` and ``call``.
            recovery_timeout_s: how much longer one of these may take when the sandbox is lost meanwhile, until another
                has taken its place and the episode is replayed in it.
            recovery: null takes the environment's word; ``"none"``: a lost sandbox ends the episode.
            snapshot_every: steps between two snapshots where ``recovery`` is ``"snapshot"``; null takes the
                environment's word, 0 takes none.
            hedge_reset: try a second sandbox when a reset takes longer than 95 in 100 of those seen did; the first one
                ready stays. ``"auto"``: once enough of them were seen; True: before that, after a quarter of the time.
            labels: kept with the lease for people to see.
        """
        request = lease_request(
            env=name,
            task=task,
            ttl_s=ttl_s,
            needs_s=needs_s,
            wait_s=wait_s,
            run_id=run_id,
            labels=labels,
            recovery=recovery,
        )
        return EnvSession(
            lambda: HeldLease(self._transport, request),
            name,
            task=task,
            seed=seed,
            options=options,
            patience=Patience(reset_timeout_s, step_timeout_s, recovery_timeout_s),
            hedge_reset=hedge_reset,
            reset_times=self._reset_times.setdefault(name, ResetTimes()),
            snapshot_every=snapshot_every,
            judge=lambda judge, of_task, of_seed: self.env(
                judge,
                task=of_task,
                seed=of_seed,
                run_id=run_id,
                wait_s=wait_s,
                ttl_s=ttl_s,
                reset_timeout_s=reset_timeout_s,
                step_timeout_s=max(step_timeout_s, JUDGE_STEP_S),
                recovery_timeout_s=recovery_timeout_s,
                labels=labels,
            ),
            report=lambda env, task, why, ago_s: self.report_task_failure(env, task, why, elapsed_s=ago_s),
        )

    def sandbox(
        self,
        image: str = "",
        *,
        spec: SandboxSpec | None = None,
        limits: Limits | None = None,
        environ: Mapping[str, str] | None = None,
        run_id: str = "",
        wait_s: float = 60.0,
        ttl_s: float = 60.0,
        needs_s: float = 0.0,
        labels: Mapping[str, str] | None = None,
    ) -> Sandbox:
        """A plain sandbox of ``image`` for commands and files; use it with ``async with``.

        Without network and with a read-only root, unless a full ``spec`` says otherwise. Give ``image`` (with
        ``limits`` and ``environ`` if you like) or ``spec``. Without an image it is the runtime's own: under Docker the
        base image ``rock-base:pyX.Y`` (``rock image build`` makes it), under bubblewrap ``host``. Docker also takes any
        local image that holds Python.
        """
        return Sandbox(
            HeldLease(
                self._transport,
                lease_request(
                    image,
                    spec=spec,
                    limits=limits,
                    environ=environ,
                    run_id=run_id,
                    wait_s=wait_s,
                    ttl_s=ttl_s,
                    needs_s=needs_s,
                    labels=labels,
                ),
            )
        )

    # --- the fleet ---------------------------------------------------------------------------------------------------

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
            "POST", f"nodes/{_part(name)}/{action}", body=NodeUpdate(reason=reason), kind=NodeView, idempotent=True
        )
        return view

    async def sandboxes(
        self, *, state: SandboxState | str | None = None, run_id: str | None = None
    ) -> list[SandboxView]:
        """Sandboxes, the youngest first; only those in ``state`` or of the run if given."""
        return await self._transport.get(list[SandboxView], "sandboxes", state=state, run_id=run_id)

    async def sandbox_view(self, sandbox_id: str) -> SandboxView:
        """One sandbox with its evidence if it failed. Raises NotFound (caller)."""
        return await self._transport.get(SandboxView, f"sandboxes/{_part(sandbox_id)}")

    async def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        """What a living sandbox takes: processor, memory, processes, disk. Raises NotFound (caller)."""
        return await self._transport.get(SandboxStats, f"sandboxes/{_part(sandbox_id)}/stats")

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Kill and remove a sandbox, whoever holds it. Raises NotFound (caller)."""
        await self._transport.request("DELETE", f"sandboxes/{_part(sandbox_id)}", idempotent=True)

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
            f"sandboxes/{_part(sandbox_id)}/restart",
            body=RestartRequest(force=force, reason=reason, wait_s=wait_s),
            kind=RestartView,
            timeout_s=wait_s + 30,
        )
        return view

    async def logs(self, sandbox_id: str, *, lines: int = 200) -> LogView:
        """The last lines its guest and environment printed; kept after its death. Raises NotFound (caller)."""
        return await self._transport.get(LogView, f"sandboxes/{_part(sandbox_id)}/logs", lines=lines)

    async def exec(self, sandbox_id: str, request: ExecRequest | Sequence[str]) -> ExecResult:
        """Run one program in a leased sandbox, whoever holds it.

        Raises: NotFound (caller: no such sandbox or program), Conflict (caller: it is not leased, and what waits in the
        warm pool must stay untouched), SandboxLost (platform).
        """
        wanted = request if isinstance(request, ExecRequest) else ExecRequest(argv=tuple(request))
        result: ExecResult = await self._transport.request(
            "POST", f"sandboxes/{_part(sandbox_id)}/exec", body=wanted, kind=ExecResult, timeout_s=wanted.timeout_s + 10
        )
        return result

    # --- leases ------------------------------------------------------------------------------------------------------

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
        await self._transport.request("DELETE", f"leases/{_part(lease_id)}", idempotent=True)

    # --- environments ------------------------------------------------------------------------------------------------

    async def envs(self) -> list[EnvView]:
        """Every environment known, built or not."""
        return await self._transport.get(list[EnvView], "envs")

    async def env_view(self, name: str) -> EnvView:
        """One environment. Raises NotFound (caller)."""
        return await self._transport.get(EnvView, f"envs/{_part(name)}")

    async def tasks(self, env: str, split: str = "train") -> TaskList:
        """The tasks of a split. Raises NotFound (caller: environment or split), ImageNotFound (caller: not built)."""
        return await self._transport.get(TaskList, f"envs/{_part(env)}/tasks", split=split)

    # --- quarantine --------------------------------------------------------------------------------------------------

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

    # --- events ------------------------------------------------------------------------------------------------------

    async def events(
        self, *, limit: int = 100, kind: str | None = None, run_id: str | None = None, after: int | None = None
    ) -> list[EventView]:
        """What happened, the latest first; with ``after``, only events of a higher id."""
        return await self._transport.get(list[EventView], "events", limit=limit, kind=kind, run_id=run_id, after=after)

    def follow(
        self, kinds: Sequence[str] = (), *, run_id: str = "", after: int | None = None
    ) -> AsyncGenerator[EventView, None]:
        """Events as they happen, each once and in order, for ever: ``async for event in rock.follow(["lease.lost"])``.

        A connection that breaks is taken up again where it was. Raises PlatformUnavailable (no platform for longer
        than ``retry_s``), Forbidden (caller), StorageError (platform).

        Args:
            kinds: only events of these kinds; empty for all.
            run_id: only those of the run.
            after: begin after this id, 0 for all that is kept; None begins with what happens from now on.
        """
        return follow(self._transport, kinds, run_id, after, self._transport.patience_s)

    # --- runs --------------------------------------------------------------------------------------------------------

    async def create_run(self, run: RunCreate) -> RunView:
        """Register a training run."""
        view: RunView = await self._transport.request("POST", "runs", body=run, kind=RunView)
        return view

    async def update_run(self, run_id: str, update: RunUpdate) -> RunView:
        """Change a run's status or detail, or add to its summary. Raises NotFound (caller)."""
        view: RunView = await self._transport.request(
            "PATCH", f"runs/{_part(run_id)}", body=update, kind=RunView, idempotent=True
        )
        return view

    async def runs(self) -> list[RunView]:
        """Every run, the youngest first."""
        return await self._transport.get(list[RunView], "runs")

    async def run(self, run_id: str) -> RunView:
        """One run. Raises NotFound (caller)."""
        return await self._transport.get(RunView, f"runs/{_part(run_id)}")

    async def report_metrics(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Store the numbers of training steps; a step reported again replaces the first. Raises NotFound (caller)."""
        await self._transport.request("POST", f"runs/{_part(run_id)}/metrics", body=list(points), idempotent=True)

    async def metrics(self, run_id: str, *, since_step: int = 0) -> list[MetricPoint]:
        """The numbers of every step from ``since_step`` on, in order. Raises NotFound (caller)."""
        return await self._transport.get(list[MetricPoint], f"runs/{_part(run_id)}/metrics", since_step=since_step)

    async def report_episodes(self, run_id: str, episodes: Sequence[EpisodeRecord]) -> None:
        """Book episodes in the run's ledger; the same id again replaces the record. Raises NotFound (caller)."""
        for start in range(0, len(episodes), EPISODES_PER_REQUEST):
            part = list(episodes[start : start + EPISODES_PER_REQUEST])
            await self._transport.request("POST", f"runs/{_part(run_id)}/episodes", body=part, idempotent=True)

    async def episodes(
        self,
        run_id: str,
        *,
        phase: str | None = None,
        outcome: str | None = None,
        ledger: LedgerState | str | None = None,
        success: bool | None = None,
        reward_min: float | None = None,
        reward_max: float | None = None,
        group: str | None = None,
        task: str | None = None,
        text: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> EpisodePage:
        """A page of the run's episodes, the latest first, without their turns. Raises NotFound (caller).

        Args:
            success: True or False for the episodes that the policy won or lost; void ones are neither.
            reward_min: inclusive, as is ``reward_max``; both leave out episodes without a reward.
            group: the id of their group, exactly.
            task: part of the task's name.
            text: words, each of which occurs in the task, the reason, or the id of the episode or its sandbox.
        """
        return await self._transport.get(
            EpisodePage,
            f"runs/{_part(run_id)}/episodes",
            phase=phase,
            outcome=outcome,
            ledger=ledger,
            success=success,
            reward_min=reward_min,
            reward_max=reward_max,
            group=group,
            task=task,
            text=text,
            limit=limit,
            offset=offset,
        )

    async def episode(self, run_id: str, episode_id: str) -> EpisodeRecord:
        """One episode with its turns. Raises NotFound (caller)."""
        return await self._transport.get(EpisodeRecord, f"runs/{_part(run_id)}/episodes/{_part(episode_id)}")

    async def ledger(self, run_id: str) -> LedgerView:
        """Where every dispatched episode of the run ended. Raises NotFound (caller)."""
        return await self._transport.get(LedgerView, f"runs/{_part(run_id)}/ledger")

    async def latencies(self, run_id: str) -> list[LatencyView]:
        """What the run's episodes spent their time on, by environment. Raises NotFound (caller)."""
        return await self._transport.get(list[LatencyView], f"runs/{_part(run_id)}/latencies")

    async def report_rhythms(self, run_id: str, rhythms: Sequence[EpisodeRhythm]) -> None:
        """Keep the attention rhythm of episodes; the same id again replaces it. Raises NotFound (caller)."""
        await self._transport.request("POST", f"runs/{_part(run_id)}/rhythm", body=list(rhythms), idempotent=True)

    async def rhythms(self, run_id: str) -> list[RhythmView]:
        """The run's recorded attention rhythms, the latest step first, without tokens. Raises NotFound (caller)."""
        return await self._transport.get(list[RhythmView], f"runs/{_part(run_id)}/rhythm")

    async def rhythm(self, run_id: str, episode_id: str) -> EpisodeRhythm:
        """The attention rhythm of one episode. Raises NotFound (caller), also where it was not recorded."""
        return await self._transport.get(EpisodeRhythm, f"runs/{_part(run_id)}/rhythm/{_part(episode_id)}")

    # --- keys --------------------------------------------------------------------------------------------------------

    async def create_key(
        self, name: str, *, scope: Scope = "run", max_leases: int = 0, max_requests: int = 0
    ) -> KeyView:
        """Make an API key. Its ``secret`` is in this answer and nowhere else. Needs a key of scope ``admin``.

        Args:
            scope: ``read`` looks, ``run`` also leases and reports runs, ``admin`` does everything.
            max_leases, max_requests: how many it may hold, or have under way, at once; 0: no limit of its own.

        Raises: Conflict (caller: the first key must be an admin's), Forbidden (caller).
        """
        try:
            body = KeyCreate(name=name, scope=scope, max_leases=max_leases, max_requests=max_requests)
        except ValidationError as error:
            raise _invalid(error) from error
        view: KeyView = await self._transport.request("POST", "keys", body=body, kind=KeyView)
        return view

    async def keys(self) -> list[KeyView]:
        """Every key, revoked ones too, without secrets. Raises Forbidden (caller)."""
        return await self._transport.get(list[KeyView], "keys")

    async def revoke_key(self, key_id: str) -> None:
        """The key is refused from now on. Raises NotFound, Conflict (caller: the only admin's), Forbidden (caller)."""
        await self._transport.request("DELETE", f"keys/{_part(key_id)}", idempotent=True)

    # --- the platform itself -----------------------------------------------------------------------------------------

    async def shutdown(self) -> None:
        """Stop the platform with everything it owns. Returns when it has agreed, not when it is gone."""
        await self._transport.request("POST", "shutdown")


def lease_request(
    image: str = "",
    *,
    env: str = "",
    task: str = "",
    spec: SandboxSpec | None = None,
    limits: Limits | None = None,
    environ: Mapping[str, str] | None = None,
    run_id: str = "",
    wait_s: float = 60.0,
    ttl_s: float = 60.0,
    needs_s: float = 0.0,
    labels: Mapping[str, str] | None = None,
    recovery: Recovery | None = None,
) -> LeaseRequest:
    """The request for an environment, or for a plain sandbox of ``image`` or ``spec``; see :class:`Rock`.

    Raises: InvalidRequest (caller) naming the value that is out of range.
    """
    try:
        if spec is None and (limits is not None or environ):
            spec = SandboxSpec(image=image, limits=limits or Limits(), environ=dict(environ or {}))
        return LeaseRequest(
            env=env,
            task=task,
            image=image or (spec.image if spec else ""),
            spec=spec,
            run_id=run_id,
            wait_s=wait_s,
            ttl_s=ttl_s,
            needs_s=needs_s,
            labels=dict(labels or {}),
            recovery=recovery,
        )
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    return InvalidRequest(f"{name}={first['input']!r}: {first['msg']}.")


def _part(value: str) -> str:
    """``value`` as one part of a path, whatever a user typed."""
    if value in {"", ".", ".."}:
        raise NotFound(f"There is nothing named {value!r}.", hint="Give an id or a name.")
    return quote(value, safe="")

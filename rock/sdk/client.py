"""`Rock`: the client of one platform. Everything the API offers as a method, environments and sandboxes as sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Self

from pydantic import ValidationError

from rock.sdk.fleet_calls import FleetCalls
from rock.sdk.following import follow
from rock.sdk.hedging import Hedge, ResetTimes
from rock.sdk.home import comes_back, resolve_url
from rock.sdk.lease import HeldLease
from rock.sdk.recovery import Patience
from rock.sdk.requests import invalid, lease_request
from rock.sdk.run_calls import RunCalls
from rock.sdk.sandbox import Sandbox
from rock.sdk.session import EnvSession
from rock.sdk.transport import Transport, part
from rock.wire.models import (
    EventView,
    KeyCreate,
    KeyView,
    LeaseRequest,
    Limits,
    Recovery,
    SandboxSpec,
    Scope,
)
from rock.wire.secrets import secret

DEFAULT_TIMEOUT_S = 30.0
# A judge runs whole test suites in its one step, and says itself what takes too long.
JUDGE_STEP_S = 600.0


class Rock(FleetCalls, RunCalls):
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
            env=name, task=task, run_id=run_id, wait_s=wait_s, ttl_s=ttl_s, needs_s=needs_s,
            labels=labels, recovery=recovery,
        )  # fmt: skip
        patience = Patience(reset_timeout_s, step_timeout_s, recovery_timeout_s)
        return EnvSession(
            lambda: HeldLease(self._transport, request),
            name,
            task=task,
            seed=seed,
            options=options,
            patience=patience,
            hedge_reset=hedge_reset,
            reset_times=self._reset_times.setdefault(name, ResetTimes()),
            snapshot_every=snapshot_every,
            judge=lambda judge, of_task, of_seed: self._judging(judge, of_task, of_seed, request, patience),
            report=lambda env, task, why, ago_s: self.report_task_failure(env, task, why, elapsed_s=ago_s),
        )

    def _judging(self, judge: str, task: str, seed: int, judged: LeaseRequest, patience: Patience) -> EnvSession:
        """A session of the environment that judges another, on the terms of that one."""
        return self.env(
            judge,
            task=task,
            seed=seed,
            run_id=judged.run_id,
            wait_s=judged.wait_s,
            ttl_s=judged.ttl_s,
            reset_timeout_s=patience.reset_s,
            step_timeout_s=max(patience.step_s, JUDGE_STEP_S),
            recovery_timeout_s=patience.recovery_s,
            labels=judged.labels,
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
            raise invalid(error) from error
        view: KeyView = await self._transport.request("POST", "keys", body=body, kind=KeyView)
        return view

    async def keys(self) -> list[KeyView]:
        """Every key, revoked ones too, without secrets. Raises Forbidden (caller)."""
        return await self._transport.get(list[KeyView], "keys")

    async def revoke_key(self, key_id: str) -> None:
        """The key is refused from now on. Raises NotFound, Conflict (caller: the only admin's), Forbidden (caller)."""
        await self._transport.request("DELETE", f"keys/{part(key_id)}", idempotent=True)

    # --- the platform itself -----------------------------------------------------------------------------------------

    async def shutdown(self) -> None:
        """Stop the platform with everything it owns. Returns when it has agreed, not when it is gone."""
        await self._transport.request("POST", "shutdown")

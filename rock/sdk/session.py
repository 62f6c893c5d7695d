"""An environment in a sandbox of its own, as the agent's side sees it: reset, step, call.

Invariants: requests are numbered, so one that is sent twice acts once; a failure is raised and never turned into an
observation or a reward; outside its ``async with`` block a session holds nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from rock.domain.errors import Conflict, DeadlineExceeded, InvalidAction, RockError
from rock.sdk.lease import HeldLease
from rock.wire.models import LeaseView


class Reset(NamedTuple):
    """What ``reset`` returns: ``observation, info = await env.reset()``."""

    observation: Any
    info: dict[str, Any]


class Step(NamedTuple):
    """What ``step`` returns, in Gymnasium's order."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class EnvSession:
    """One episode's environment, in a sandbox that nobody else has. Made by :meth:`rock.sdk.Rock.env`.

    >>> async with rock.env("alfworld", task="...", seed=1) as env:   # doctest: +SKIP
    ...     observation, info = await env.reset()
    ...     observation, reward, terminated, truncated, info = await env.step("go to fridge 1")

    Observations are whatever JSON the environment returned. A session is for one task at a time: one call after the
    other. Another ``reset`` starts another episode in the same sandbox; where nothing of the first may be left, open
    another session.
    """

    def __init__(
        self,
        held: HeldLease,
        name: str,
        *,
        task: str,
        seed: int,
        options: Mapping[str, Any] | None,
        reset_timeout_s: float,
        step_timeout_s: float,
    ) -> None:
        self._held = held
        self.name = name
        self.task = task
        self.seed = seed
        self.options: dict[str, Any] = dict(options or {})
        self._reset_timeout_s = reset_timeout_s
        self._step_timeout_s = step_timeout_s
        self._next_seq: int | None = None
        self._busy = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def lease(self) -> LeaseView:
        """The lease held. Raises LeaseExpired outside the ``async with`` block."""
        return self._held.view

    @property
    def sandbox_id(self) -> str:
        """Id of the sandbox held. Raises LeaseExpired outside the ``async with`` block."""
        return self._held.view.sandbox_id

    async def open(self) -> None:
        """Take the lease; ``async with`` does it for you.

        Raises: NotFound (caller: no such environment), ImageNotFound (caller: it has not been built),
        CapacityExceeded (platform: no sandbox within ``wait_s``), RuntimeUnavailable, PlatformUnavailable,
        SandboxLost (platform).
        """
        await self._held.open()

    async def close(self) -> None:
        """Give the sandbox back; it is removed. Again, or without a lease, it does nothing. Never takes longer than
        a few seconds, and raises no error of the platform: what is not released ends with its time-to-live."""
        await self._held.close()

    async def reset(
        self,
        task: str | None = None,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Reset:
        """Start the episode of (task, seed, options); what is not given stays as it was.

        Raises: NotFound (caller: no such task); EnvironmentError (environment: its own code raised);
        SandboxLost (platform: the sandbox died, its evidence is in ``cause``); DeadlineExceeded (platform: not within
        ``timeout_s``); LeaseExpired (caller: the session is not open).
        """
        self.task = self.task if task is None else task
        self.seed = self.seed if seed is None else seed
        self.options = self.options if options is None else dict(options)
        async with self._busy:
            self._next_seq = 0
            value = await self._numbered(
                "env.reset", timeout_s or self._reset_timeout_s, task=self.task, seed=self.seed, options=self.options
            )
        return Reset(value["observation"], value["info"])

    async def step(self, action: Any, *, timeout_s: float | None = None) -> Step:
        """Act once. After DeadlineExceeded the same action may be given again: it acts once all the same.

        Raises: InvalidAction (agent: not yet reset, the episode is over, the action is of the wrong type);
        EnvironmentError (environment: its own code raised, the episode is void); SandboxLost (platform: the episode
        is void, the evidence is in ``cause``; raised at once when a heartbeat tells of it); DeadlineExceeded
        (platform: not within ``timeout_s``); Conflict (caller: another action while one that timed out still runs);
        LeaseExpired (caller: the session is not open).
        """
        async with self._busy:
            if self._next_seq is None:
                raise InvalidAction("The environment was not reset yet.", hint="Call reset() before step().")
            value = await self._numbered("env.step", timeout_s or self._step_timeout_s, action=action)
        return Step(
            value["observation"], float(value["reward"]), value["terminated"], value["truncated"], value["info"]
        )

    async def call(self, method: str, /, *, timeout_s: float | None = None, **args: Any) -> Any:
        """Anything beside the episode that the environment offers (demonstrations, state for debugging).

        Raises: NotFound (caller: no such method); EnvironmentError, SandboxLost, DeadlineExceeded and LeaseExpired as
        :meth:`step`.
        """
        async with self._busy:
            value = await self._held.call(
                "env.call", timeout_s=timeout_s or self._step_timeout_s, method=method, args=args
            )
        return value["value"]

    async def _numbered(self, op: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
        """Send the request with the episode's next number; used up unless the guest refused it or may yet answer."""
        seq = self._next_seq
        assert seq is not None
        try:
            value: dict[str, Any] = await self._held.call(op, timeout_s=timeout_s, repeatable=True, seq=seq, **fields)
        except Conflict as error:
            raise Conflict(
                f"{error.message} (request {seq} of the episode)",
                hint="After a time-out give the same action again, or open another session.",
                cause=error.cause,
            ) from error
        except (InvalidAction, DeadlineExceeded):
            raise
        except RockError:
            self._next_seq = seq + 1
            raise
        self._next_seq = seq + 1
        return value

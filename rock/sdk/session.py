"""An environment in a sandbox of its own, as the agent's side sees it: reset, step, call.

Invariants: requests are numbered, so one that is sent twice acts once; a failure is raised and never turned into an
observation or a reward; a sandbox that is lost is replaced, and the episode replayed in the other, before anything else
is answered; outside its ``async with`` block a session holds nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self

from rock.domain.errors import (
    Conflict,
    DeadlineExceeded,
    ImageBuildFailed,
    InvalidAction,
    InvalidRequest,
    RockError,
    TaskQuarantined,
)
from rock.domain.errors import EnvironmentError as EnvironmentFailed
from rock.sdk.hedging import Hedge, ResetTimes
from rock.sdk.journal import Journal
from rock.sdk.judging import judged
from rock.sdk.lease import HeldLease
from rock.sdk.recovery import Patience, Seat
from rock.sdk.snapshots import LOSSES
from rock.wire.models import LeaseView, RecoveryReport

Report = Callable[[str, str, str, float], Awaitable[object]]
"""Tells the platform that an environment failed at a task: environment, task, reason, seconds since the call began.
None: the task is not in quarantine."""

_REPORT_TIMEOUT_S = 2.0


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

    A sandbox that dies, or freezes, under an environment whose ``recovery`` is ``replay`` is replaced at once: another
    one is bound to the lease, the episode so far is replayed in it, and every answer must be the same as before. The
    caller of ``reset``, ``step`` and ``call`` only waits longer; ``recoveries`` says what happened. What a ``call``
    changed in the environment is not replayed. Where ``recovery`` is ``snapshot`` the sandbox's files are kept every so
    many steps, while the caller thinks, and only what came since is replayed.
    """

    def __init__(
        self,
        hold: Callable[[], HeldLease],
        name: str,
        *,
        task: str,
        seed: int,
        options: Mapping[str, Any] | None,
        patience: Patience,
        hedge_reset: Hedge = False,
        reset_times: ResetTimes | None = None,
        report: Report | None = None,
        snapshot_every: int | None = None,
        judge: Callable[[str, str, int], EnvSession] | None = None,
    ) -> None:
        self._hold = hold
        self.name = name
        self.task = task
        self.seed = seed
        self.options: dict[str, Any] = dict(options or {})
        self.recoveries: list[RecoveryReport] = []
        """The losses of a sandbox that this session got over, in order."""
        self._patience = patience
        self._hedge = hedge_reset
        self._reset_times = reset_times or ResetTimes()
        self._report = report
        self._snapshot_every = snapshot_every
        self._judge = judge
        self._journal = Journal()
        self._next_seq: int | None = None
        self._busy = asyncio.Lock()
        self._seat = self._another_seat()
        self._leaving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def lease(self) -> LeaseView:
        """The lease held. Raises LeaseExpired outside the ``async with`` block."""
        return self._seat.held.view

    @property
    def sandbox_id(self) -> str:
        """Id of the sandbox held now. Raises LeaseExpired outside the ``async with`` block."""
        return self._seat.held.view.sandbox_id

    async def open(self) -> None:
        """Take the lease; ``async with`` does it for you.

        Raises: NotFound (caller: no such environment), ImageNotFound (caller: it has not been built),
        CapacityExceeded (platform: no sandbox within ``wait_s``), RuntimeUnavailable, PlatformUnavailable,
        SandboxLost (platform); InvalidRequest (caller: it is to recover by snapshots, and is not made for it);
        ImageBuildFailed (environment: the task's own image can neither be fetched nor made), and TaskQuarantined
        (environment) when that, or its sandbox, failed again and again.
        """
        self._journal.begin(self.task, self.seed, self.options)
        self._next_seq = None
        began = time.monotonic()
        try:
            await self._seat.open()
        except ImageBuildFailed as error:
            await self._report_failure(error, "has no image", time.monotonic() - began)
            raise

    async def close(self) -> None:
        """Give the sandbox back; it is removed. Again, or without a lease, it does nothing. Never takes longer than
        a few seconds, and raises no error of the platform: what is not released ends with its time-to-live."""
        await self._seat.close()
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def fork(self, count: int = 1) -> list[EnvSession]:
        """``count`` sessions at the same point of the episode, each in a sandbox of its own: open, and to be closed
        one by one. They get there by replaying it, and every answer must be what it was.

        Raises: Diverged (environment: it is not deterministic); InvalidRequest (caller: ``count`` is below 1, or the
        environment declares ``recovery = "none"``); Conflict (caller: no episode is under way); and as :meth:`open`.
        If one cannot be made, none is left.
        """
        if count < 1:
            raise InvalidRequest(f"count is {count}, expected at least 1.")
        if self.lease.recovery == "none":
            raise InvalidRequest(
                f"environment {self.name!r} cannot be replayed, so its episodes cannot be forked",
                hint='Declare recovery = "replay" in its env.toml if it is deterministic.',
            )
        async with self._busy:
            if not self._journal.worth_replaying:
                raise Conflict("there is no episode to fork", hint="Fork between reset and the last step.")
            copies = [self._copy() for _ in range(count)]
            made = await asyncio.gather(*(copy._catch_up(self) for copy in copies), return_exceptions=True)
        if failed := [error for error in made if isinstance(error, BaseException)]:
            await asyncio.gather(*(copy.close() for copy in copies))
            raise failed[0]
        return copies

    def _copy(self) -> EnvSession:
        return EnvSession(
            self._hold,
            self.name,
            task=self.task,
            seed=self.seed,
            options=self.options,
            patience=self._patience,
            reset_times=self._reset_times,
            report=self._report,
            snapshot_every=self._snapshot_every,
        )

    async def _catch_up(self, original: EnvSession) -> None:
        await self.open()
        self._journal.copy_of(original._journal)
        await self._seat.catch_up()
        self._next_seq = original._next_seq

    async def reset(
        self,
        task: str | None = None,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Reset:
        """Start the episode of (task, seed, options); what is not given stays as it was.

        Raises: NotFound (caller: no such task); EnvironmentError (environment: its own code raised), and
        TaskQuarantined (environment) when it did so again and again at this task; InvalidRequest (caller: the sandbox
        has the image of another task);
        SandboxLost (platform: the sandbox died, its evidence is in ``cause``, and no other took its place);
        DeadlineExceeded (platform: not within ``timeout_s``); LeaseExpired (caller: the session is not open).
        """
        if task is not None and (only := self.lease.task) not in ("", task):
            raise InvalidRequest(
                f"this sandbox has the image of task {only!r}, and {task!r} cannot be played in it",
                hint="Open a session for each task (in a recipe: rollout.episodes_per_sandbox=1).",
            )
        self.task = self.task if task is None else task
        self.seed = self.seed if seed is None else seed
        self.options = self.options if options is None else dict(options)
        async with self._busy:
            await self._seat.snapshots.settled()
            self._seat.snapshots.new_episode(self._journal.checkpoint)
            self._journal.begin(self.task, self.seed, self.options)
            self._next_seq = 0
            began = time.monotonic()
            try:
                value = await self._numbered(0, self._reset(timeout_s or self._patience.reset_s))
            except EnvironmentFailed as error:
                await self._report_failure(error, "cannot be reset", time.monotonic() - began)
                raise
            self._journal.was_reset(value)
        return Reset(value["observation"], value["info"])

    async def _report_failure(self, error: RockError, what: str, elapsed_s: float) -> None:
        """Tell the platform of it; that it does not hear of it changes nothing for whoever met it.

        Raises TaskQuarantined if the task is in quarantine by now.
        """
        if self._report is None or not self.task:
            return
        quarantined = False
        with suppress(RockError, TimeoutError):
            async with asyncio.timeout(_REPORT_TIMEOUT_S):
                reason = f"{error.message} {error.cause}".strip()
                quarantined = await self._report(self.name, self.task, reason, elapsed_s) is not None
        if quarantined:
            raise TaskQuarantined(
                f"task {self.task!r} of {self.name!r} {what}, again and again: {error.message}",
                hint=f"Leave it out, or mend it and `rock quarantine clear {self.name}/{self.task}`.",
                cause=error.cause,
            ) from error

    async def step(self, action: Any, *, timeout_s: float | None = None) -> Step:
        """Act once. After DeadlineExceeded the same action may be given again: it acts once all the same.

        Where the environment has a judge (``LeaseView.judge``), the step that ends the episode also waits for a second
        sandbox in which that environment gives the reward; ``info["verdict"]`` is what it said.

        Raises: InvalidAction (agent: not yet reset, the episode is over, the action is of the wrong type);
        EnvironmentError (environment: its own code raised, the episode is void); SandboxLost (platform: the episode
        is void, the evidence is in ``cause``; raised at once when a heartbeat tells of it); Diverged (environment: a
        SandboxLost; the replay in another sandbox came out differently, so the episode is void); DeadlineExceeded
        (platform: not within ``timeout_s``); Conflict (caller: another action while one that timed out still runs);
        LeaseExpired (caller: the session is not open).
        """
        async with self._busy:
            if (seq := self._next_seq) is None:
                raise InvalidAction("The environment was not reset yet.", hint="Call reset() before step().")
            value = await self._numbered(
                seq,
                self._seat.perform(
                    "env.step", timeout_s or self._patience.step_s, replay=True, repeatable=True, seq=seq, action=action
                ),
            )
            self._journal.stepped(action, value)
            self._seat.snapshots.begin_if_due()
            over = value["terminated"] or value["truncated"]
            if over and self._judge is not None and (judge := self._seat.held.view.judge):
                value = await judged(self._judge(judge, self.task, self.seed), value)
        return Step(
            value["observation"], float(value["reward"]), value["terminated"], value["truncated"], value["info"]
        )

    async def call(self, method: str, /, *, timeout_s: float | None = None, recover: bool = True, **args: Any) -> Any:
        """Anything beside the episode that the environment offers (demonstrations, state for debugging).

        It is not part of the episode: what it changes is not replayed. One whose sandbox is lost meanwhile is made
        again in the other sandbox, unless ``recover`` is False; then it raises SandboxLost.

        Raises: NotFound (caller: no such method); EnvironmentError, SandboxLost, DeadlineExceeded and LeaseExpired as
        :meth:`step`.
        """
        async with self._busy:
            value = await self._seat.perform(
                "env.call",
                timeout_s or self._patience.step_s,
                replay=self._journal.begun,
                repeatable=False,
                recover=recover,
                method=method,
                args=args,
            )
        return value["value"]

    async def _numbered(self, seq: int, work: Any) -> dict[str, Any]:
        """The answer of ``work``, the request of number ``seq``; used up unless refused or perhaps yet answered."""
        try:
            value: dict[str, Any] = await work
        except Conflict as error:
            raise Conflict(
                f"{error.message} (request {seq} of the episode)",
                hint="After a time-out give the same action again, or open another session.",
                cause=error.cause,
            ) from error
        except (InvalidAction, DeadlineExceeded):
            raise
        except RockError as error:
            if isinstance(error, EnvironmentFailed):
                self._journal.failure = error
            self._next_seq = seq + 1
            raise
        self._next_seq = seq + 1
        return value

    # --- resets, perhaps in two sandboxes at once --------------------------------------------------------------------

    async def _reset(self, timeout_s: float) -> dict[str, Any]:
        began = asyncio.get_running_loop().time()
        hedge_s = self._reset_times.hedge_after_s(self._hedge, timeout_s)
        if hedge_s is None:
            value = await self._reset_in(self._seat, timeout_s)
        else:
            first = asyncio.create_task(self._reset_in(self._seat, timeout_s))
            try:
                await asyncio.wait({first}, timeout=hedge_s)
                value = first.result() if first.done() else await self._race(first, timeout_s)
            finally:
                first.cancel()
        self._reset_times.note(asyncio.get_running_loop().time() - began)
        return value

    async def _reset_in(self, seat: Seat, timeout_s: float) -> dict[str, Any]:
        fields: dict[str, Any] = {"task": self.task, "seed": self.seed, "options": self.options}
        value: dict[str, Any] = await seat.perform(
            "env.reset", timeout_s, replay=False, repeatable=True, seq=0, **fields
        )
        return value

    async def _race(self, first: asyncio.Task[dict[str, Any]], timeout_s: float) -> dict[str, Any]:
        """The reset takes long: whichever of two sandboxes is ready first stays, the other is given back."""
        spare = self._another_seat()
        self._reset_times.hedges += 1
        second = asyncio.create_task(self._open_and_reset(spare, timeout_s))
        loser, its_work = spare, second
        waiting = {first, second}
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if first in done and not isinstance(first.exception(), (*LOSSES, DeadlineExceeded)):
                    break  # ready, or the environment's own failure, which the other would meet as well
                if second in done and second.exception() is None:
                    loser, its_work, self._seat = self._seat, first, spare
                    self._reset_times.wins += 1
                    return second.result()
            return first.result()
        finally:
            task = asyncio.create_task(_leave(loser, its_work))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _open_and_reset(self, seat: Seat, timeout_s: float) -> dict[str, Any]:
        await seat.open()
        return await self._reset_in(seat, timeout_s)

    def _another_seat(self) -> Seat:
        return Seat(
            self._hold(),
            self._journal,
            self._busy,
            patience=self._patience,
            on_report=self._note_recovery,
            snapshot_every=self._snapshot_every,
        )

    def _note_recovery(self, report: RecoveryReport, instead_of: RecoveryReport | None) -> None:
        if instead_of is not None and instead_of in self.recoveries:
            self.recoveries[self.recoveries.index(instead_of)] = report
        elif instead_of is None:
            self.recoveries.append(report)


async def _leave(seat: Seat, work: asyncio.Task[Any]) -> None:
    work.cancel()
    await asyncio.wait({work})
    await seat.close()

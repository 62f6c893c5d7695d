"""A held sandbox that is always where the journal says: lost, it is replaced, and the episode replayed in the other.

Invariants: whoever calls gets the answer of the one episode or an error, never an answer from elsewhere in it; a
request is sent to the replacement only after all that came before it gave the same answers again (:class:`Diverged`
otherwise); recovering takes at most ``recovery_s`` a call, and losses that go on end by the platform's own limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rock.domain.errors import DeadlineExceeded, Diverged, Recovering, RockError, SandboxLost
from rock.sdk.journal import Journal
from rock.sdk.lease import HeldLease
from rock.sdk.reaching import again
from rock.sdk.snapshots import LOSSES, Snapshots
from rock.wire.models import RecoveryReport

logger = logging.getLogger(__name__)

_TELL_LIMIT_S = 1.0
_ASK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a session waits for what, in seconds."""

    reset_s: float = 60.0
    step_s: float = 30.0
    recovery_s: float = 60.0


class Seat:
    """One held sandbox of an episode. ``busy`` is held by whoever calls; a loss between calls is mended under it."""

    def __init__(
        self,
        held: HeldLease,
        journal: Journal,
        busy: asyncio.Lock,
        *,
        patience: Patience,
        on_report: Callable[[RecoveryReport, RecoveryReport | None], None],
        snapshot_every: int | None = None,
    ) -> None:
        self.held = held
        self.snapshots = Snapshots(held, journal, snapshot_every, step_s=patience.step_s)
        self._journal = journal
        self._busy = busy
        self._patience = patience
        self._on_report = on_report
        self._behind = False
        self._healing: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        held.on_loss = self._lost_between_calls

    async def open(self) -> None:
        """Take the lease. Raises what :meth:`HeldLease.open` and :meth:`Snapshots.open` do."""
        self._behind = False
        await self.held.open()
        try:
            await self.snapshots.open(
                lambda op: self.perform(op, self._patience.reset_s, replay=False, repeatable=True)
            )
        except BaseException:
            await self.close()
            raise

    async def catch_up(self) -> None:
        """Bring a sandbox that knows nothing of it to where the journal ends. Raises Diverged, SandboxLost."""
        self._behind = True
        await self._restore(_now() + self._patience.recovery_s, replay=True)

    async def close(self) -> None:
        """Give the sandbox back at once, whatever is under way."""
        if self._healing is not None:
            self._healing.cancel()
        self.snapshots.close()
        try:
            await self.held.close()
            if self._telling:
                await asyncio.wait(self._telling, timeout=_TELL_LIMIT_S)
        finally:
            for task in self._telling:
                task.cancel()

    async def perform(
        self, op: str, timeout_s: float, *, replay: bool, repeatable: bool, recover: bool = True, **fields: Any
    ) -> Any:
        """One operation of the guest, in whichever sandbox. With ``replay`` it needs the journal's state.

        Takes ``timeout_s`` and, where a sandbox is lost, up to the recovery's time-out beside it.
        """
        await self.snapshots.settled()
        deadline = _now() + timeout_s + self._patience.recovery_s
        while True:
            if self.held.lost is not None and not (recover and self.held.recovers):
                raise again(self.held.lost)
            if self.held.lost is not None or (replay and self._behind):
                await self._restore(min(deadline, _now() + self._patience.recovery_s), replay=replay)
            try:
                value = await self.held.call(
                    op, timeout_s=min(timeout_s, max(0.01, deadline - _now())), repeatable=repeatable, **fields
                )
            except LOSSES:
                if self.held.lost is None or not self.held.recovers or not recover or _now() >= deadline:
                    raise
                continue
            if op == "env.reset":
                self._behind = False
            return value

    def _lost_between_calls(self) -> None:
        if self._healing is None or self._healing.done():
            self._healing = asyncio.create_task(self._heal(), name="recovery")

    async def _heal(self) -> None:
        """At once rather than at the next call: an agent takes seconds to think of it. A call under way does the same
        itself, and then nothing is left to do here."""
        async with self._busy:
            await self.snapshots.settled()
            try:
                replay = self._journal.worth_replaying
                if self.held.active and (self.held.lost is not None or (replay and self._behind)):
                    await self._restore(_now() + self._patience.recovery_s, replay=replay)
            except RockError as error:
                logger.info("not recovered yet, the next call tries again or says why: %s", error)

    async def _restore(self, deadline: float, *, replay: bool) -> None:
        """Bind to a living sandbox, and with ``replay`` bring it to where the journal ends.

        Raises: Diverged; SandboxLost when there is no other sandbox, or not within the time; LeaseExpired.
        """
        old, lost, began = self.held.view.sandbox_id, self.held.lost, _now()
        rebind_s, replayed, from_step = 0.0, 0, 0
        while True:
            try:
                if self.held.lost is not None:
                    self._behind = True
                    wanted = self._journal.goes_on_from
                    await self.held.rebind(wait_s=max(0.1, deadline - _now()), snapshot=wanted)
                rebind_s = _now() - began
                if replay and self._behind:
                    replayed, from_step = await self._replay(deadline)
                    self._behind = False
                break
            except Diverged as error:
                self._journal.failure = error
                self._report(old, lost, rebind_s, _now() - began - rebind_s, replayed, diverged=True)
                raise
            except LOSSES as error:  # the other one died as well, or there is none
                if self.held.lost is None or self.held.over or not self.held.active:
                    raise
                if _now() >= deadline:
                    raise SandboxLost(
                        f"No other sandbox took the place of {old} within {self._patience.recovery_s:g} s: {error}",
                        hint="The episode is void. `rock events` says what the platform tried.",
                        cause=error.cause,
                    ) from error
                if isinstance(error, Recovering):
                    await asyncio.sleep(_ASK_AGAIN_S)
        if lost is not None:
            self._report(old, lost, rebind_s, _now() - began - rebind_s, replayed, from_step)

    async def _replay(self, deadline: float) -> tuple[int, int]:
        """How many steps were replayed, and after which one the replay began."""
        journal = self._journal
        if journal.failure is not None:
            raise again(journal.failure)
        if not journal.begun:
            return 0, 0
        fields: dict[str, Any] = {"task": journal.task, "seed": journal.seed, "options": journal.options}
        reset_s = min(self._patience.reset_s, deadline - _now())
        checkpoint = journal.checkpoint
        if checkpoint is not None and checkpoint.name == self.held.view.snapshot:
            from_step = checkpoint.step
            await self._again(from_step, "env.restore", reset_s, state=checkpoint.state, **fields)
            found = await self._again(from_step, "env.checkpoint", min(self._patience.step_s, deadline - _now()))
            journal.compare_state(checkpoint, found["state"])
        else:
            from_step, journal.checkpoint = 0, None  # the platform no longer has it
            journal.compare(0, await self._again(0, "env.reset", reset_s, **fields))
        rest = journal.since(from_step)
        for number, action in rest:
            left_s = min(self._patience.step_s, deadline - _now())
            journal.compare(number, await self._again(number, "env.step", left_s, action=action))
        return len(rest), from_step

    async def _again(self, number: int, op: str, timeout_s: float, **fields: Any) -> Any:
        try:
            return await self.held.call(op, timeout_s=max(0.01, timeout_s), repeatable=True, seq=number, **fields)
        except LOSSES:
            raise
        except (DeadlineExceeded, asyncio.CancelledError) as error:
            # It may still be running in there: this one can no longer be brought to a known state.
            self.held.lose(SandboxLost(f"the replay of the episode was not finished in it ({op}, request {number})"))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise again(self.held.lost) from error  # type: ignore[arg-type]  # it was lost just now
        except RockError as error:
            raise self._journal.diverged(number, f"it raised {type(error).__name__}: {error.message}") from error

    # --- telling

    def _report(
        self,
        old: str,
        lost: RockError | None,
        rebind_s: float,
        replay_s: float,
        steps: int,
        from_step: int = 0,
        *,
        diverged: bool = False,
    ) -> None:
        view = self.held.view
        report = RecoveryReport(
            verdict="diverged" if diverged else "resumed",
            epoch=view.epoch,
            cause=lost.message if lost is not None else "",
            old_sandbox=old,
            new_sandbox=view.sandbox_id,
            rebind_s=rebind_s,
            replay_s=replay_s,
            steps=steps,
            from_step=from_step,
        )
        logger.info("lease=%s %s", view.id, report.sentence)
        self._on_report(report, None)
        task = asyncio.create_task(self._tell(view.id, report), name="recovery report")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, lease_id: str, report: RecoveryReport) -> None:
        """Complete the report with what the platform found out, and let it stand among the platform's events."""
        seen = await self.held.calls.ended_sandbox(report.old_sandbox)
        evidence = seen.evidence if seen is not None else None
        if evidence is not None:
            cause = f"{evidence.cause}: {evidence.detail}" if evidence.detail else evidence.cause
            known = report.model_copy(update={"cause": cause, "detect_s": evidence.detected_after_s or 0.0})
            self._on_report(known, report)
            report = known
        await self.held.calls.tell(lease_id, report)


def _now() -> float:
    return asyncio.get_running_loop().time()

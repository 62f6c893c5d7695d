"""Carries out what the machine decides: keeps admitted episodes running, refills at once, replaces what was lost.

Nothing polls: a place is filled again in the call-back of the episode that left it; in an outage one timer waits out
the back-off. Invariants: never more episodes at once than there are slots; each episode's end reaches the machine
once; a fatal error stops new starts and is raised to whoever waits for a batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from rock.domain.outcome import LedgerState, Truncated, Void, VoidCause
from roll_core.errors import PlatformOutage
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.clock import now_s
from roll_core.rollout.episode import Episode, Player
from roll_core.rollout.machine import RolloutMachine
from roll_core.rollout.sessions import look_ahead
from roll_core.rollout.work import Booking, Effects, EpisodeSpec
from roll_core.types import Group, Trajectory

T = TypeVar("T")

log = logging.getLogger(__name__)

CLOSE_S = 60.0
"""A cancelled episode's own deadlines, for its engine and its sandbox, end well before this."""

OUTSIDE_CAUSES = frozenset(set(VoidCause) - {VoidCause.ENVIRONMENT_ERROR})
"""Voids that may mean the platform is down. A task whose own code fails says nothing about the platform."""


class Slots:
    """How many episodes may be played at once, shared by training and evaluation.

    ``free`` is below 0 after :meth:`resize` to less than is being played: nothing is cut off, less is started.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiters: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        if self.free <= 0 or self._waiters:
            return False
        self.free -= 1
        return True

    async def acquire(self) -> None:
        if self.take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()  # the slot came at the same moment as the cancellation
            raise

    def release(self) -> None:
        self.free += 1
        self._serve()

    def resize(self, total: int) -> None:
        self.free += total - self.total
        self.total = total
        self._serve()

    def _serve(self) -> None:
        while self._waiters and self.free > 0:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.free -= 1
                waiter.set_result(None)


class Scheduler:
    def __init__(
        self,
        machine: RolloutMachine,
        player: Player,
        slots: Slots,
        guard: OutageGuard,
        *,
        outage_s: float,
        on_booked: Callable[[Booking], None],
        on_ended: Callable[[Trajectory], None] = lambda trajectory: None,
        on_started: Callable[[EpisodeSpec], None] = lambda spec: None,
    ) -> None:
        """``on_booked``: an episode reached its account. ``on_ended``: one was played to its end, or lost."""
        self.machine = machine
        self._player = player
        self._slots = slots
        self._guard = guard
        self._outage_s = outage_s
        self._on_booked = on_booked
        self._on_ended = on_ended
        self._on_started = on_started
        self._running: dict[str, tuple[Episode, asyncio.Task[Trajectory]]] = {}
        self._paused = True
        self._timer: asyncio.TimerHandle | None = None
        self._fatal: BaseException | None = None
        self._changed = asyncio.Event()
        self._seen_position = -1

    @property
    def running(self) -> int:
        return len(self._running)

    # --- control -----------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        self._paused = False
        self.fill()

    def pause(self) -> None:
        """Start nothing new. What is being played goes on."""
        self._paused = True

    def published(self, version: int) -> None:
        self.machine.published(version)
        self.fill()

    async def next_batch(self) -> tuple[Group, ...]:
        """The next batch of groups, as soon as it is ready. Raises what made rollout impossible."""
        while not self.machine.batch_ready():
            self._check()
            self._changed.clear()
            await self._changed.wait()
        groups, effects = self.machine.take_batch()
        self.carry_out(effects)
        self.fill()
        return groups

    def fail(self, error: BaseException) -> None:
        """Something that rollout needs is gone: start nothing more, and raise ``error`` to whoever waits."""
        self._fatal = self._fatal or error
        self._changed.set()

    async def close(self) -> None:
        """Cancel what is being played and wait until every episode has given its sandbox back."""
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()
        self.carry_out(self.machine.close())
        tasks = [task for _, task in self._running.values()]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in left:  # they stay in flight in the ledger; a resume books them as cancelled
                log.error("%s did not end within %g s of being cancelled", task.get_name(), CLOSE_S)
            await asyncio.sleep(0)  # lets the call-backs of the last tasks book them

    def carry_out(self, effects: Effects) -> None:
        for booking in effects.booked:
            self._on_booked(booking)
        for episode_id in effects.cancel:
            self._running[episode_id][1].cancel()

    # --- the episodes ------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Start what may start now. Who adds slots calls it; every end of an episode does."""
        while not self._paused and self._fatal is None:
            wait_s = self._guard.wait_s(now_s())
            if wait_s > 0:
                self._fill_after(wait_s)
                return
            if not self._slots.take():
                return
            spec = self.machine.next_start()
            if spec is None:
                self._slots.release()
                return
            self._launch(spec)

    def _fill_after(self, wait_s: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        try:
            self.fill()
        except Exception as error:  # noqa: BLE001 - as above
            self.fail(error)

    def _launch(self, spec: EpisodeSpec) -> None:
        episode = self._player.episode(spec)
        task = asyncio.get_running_loop().create_task(episode.play(), name=f"episode {spec.id}")
        self._running[spec.id] = (episode, task)
        task.add_done_callback(partial(self._ended, episode))
        self._on_started(spec)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """A new group was opened: tell of the tasks of a whole batch after it."""
        tasks, settings = self.machine.tasks, self.machine.settings
        if tasks.position != self._seen_position:
            self._seen_position = tasks.position
            look_ahead(self._player.sessions, tasks.coming(settings.groups_per_batch + settings.extra_groups))

    def _ended(self, episode: Episode, task: asyncio.Task[Trajectory]) -> None:
        try:
            self._end(episode, task)
        except Exception as error:  # noqa: BLE001 - nobody waits for a call-back: whoever waits for a batch hears of it
            self.fail(error)

    def _end(self, episode: Episode, task: asyncio.Task[Trajectory]) -> None:
        del self._running[episode.spec.id]
        self._slots.release()
        trajectory = self._result(episode, task)
        if not self.machine.is_closing(trajectory.id):
            note_outcome(self._guard, trajectory)
            self._on_ended(trajectory)
        self.carry_out(self.machine.finished(trajectory))
        self._changed.set()
        self.fill()

    def _result(self, episode: Episode, task: asyncio.Task[Trajectory]) -> Trajectory:
        if task.cancelled():
            if self.machine.is_closing(episode.spec.id):
                return episode.so_far(Truncated("cancelled"))
            return episode.so_far(Void(VoidCause.PLATFORM, "the episode's coroutine was cancelled from outside"))
        error = task.exception()
        if error is None:
            return task.result()
        self._fatal = self._fatal or error
        return episode.so_far(Void(VoidCause.PLATFORM, str(error)))

    def _check(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        check_outage(self._guard, self._outage_s)


def note_outcome(guard: OutageGuard, trajectory: Trajectory) -> None:
    outcome = trajectory.outcome
    if not isinstance(outcome, Void):
        guard.succeeded()
    elif outcome.cause in OUTSIDE_CAUSES:
        guard.lost(now_s())


def check_outage(guard: OutageGuard, outage_s: float) -> None:
    down_s = guard.down_for_s(now_s())
    if guard.streak > guard.free and down_s > outage_s:
        raise PlatformOutage(
            f"no episode could be played for {down_s:.0f} s ({guard.streak} losses in a row), more than the "
            f"{outage_s:g} s of platform.outage_s."
        )


async def play_measured(
    specs: Sequence[Callable[[], EpisodeSpec]],
    player: Player,
    machine: RolloutMachine,
    slots: Slots,
    guard: OutageGuard,
    *,
    outage_s: float,
    on_booked: Callable[[Booking], None],
) -> list[Trajectory]:
    """Play each of ``specs`` to a counted end, outside of any group. A void episode is replaced, never returned.

    A spec is a function because each attempt is an episode of its own in the ledger.
    """

    async def one(new_spec: Callable[[], EpisodeSpec]) -> Trajectory:
        while True:
            await slots.acquire()
            try:
                check_outage(guard, outage_s)
                await asyncio.sleep(guard.wait_s(now_s()))
                trajectory = await _play_once(new_spec())
            finally:
                slots.release()
            if not isinstance(trajectory.outcome, Void):
                return trajectory

    async def _play_once(spec: EpisodeSpec) -> Trajectory:
        episode = player.episode(spec)
        try:
            trajectory = await episode.play()
        except BaseException as error:
            book(episode.so_far(Truncated(f"cancelled: {error!r}")), LedgerState.CANCELLED)
            raise
        void = isinstance(trajectory.outcome, Void)
        book(trajectory, LedgerState.VOID if void else LedgerState.EVALUATED)
        note_outcome(guard, trajectory)
        return trajectory

    def book(trajectory: Trajectory, state: LedgerState) -> None:
        on_booked(machine.book_measured(trajectory, state))

    return await all_of([one(new_spec) for new_spec in specs])


async def all_of(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results in order. The first error ends the others and is raised as itself, not wrapped in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]

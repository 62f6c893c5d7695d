"""The brain of rollout: a pure state machine over admission, groups, buffer and ledger. No I/O and no clock.

Events go in (``next_start``, ``finished``, ``take_batch``, ``trained``, ``published``, ``close``), :class:`Effects`
come out; the scheduler carries them out. Invariants, all property-tested:

* samples in the buffer and in flight never exceed ⌊(1+α)·N⌋, those being cancelled included;
* every sample of a batch taken at version n was initiated by version ≥ n − α;
* every dispatched episode is booked exactly once, and a void one never reaches a group;
* with nothing in flight, either a batch can be taken or an episode can be started: there is always progress.

``retune`` changes α and the redundancy while it runs. α of the settings stays the bound of every sample; a lower one
holds back what has not started, and nothing that was admitted before becomes stale by it. N is then that of the most
redundancy there has been.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from rock.domain.outcome import LedgerState, Void, VoidCause
from roll_core.rollout.admission import Admission
from roll_core.rollout.buffer import Buffer, Order
from roll_core.rollout.groups import GroupBook, OpenGroup, ReadyGroup, Running, has_signal
from roll_core.rollout.ledger import Ledger, LedgerSnapshot
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import Booking, Effects, EpisodeSpec
from roll_core.types import Group, Trajectory


@dataclass(frozen=True, slots=True)
class MachineSettings:
    alpha: float
    group_size: int
    groups_per_batch: int
    extra_members: int = 0
    extra_groups: int = 0
    order: Order = "opened"
    filter_zero_variance: bool = True
    max_voids_per_group: int = 32
    last_version: int | None = None
    """No batch is trained at this version or later, so nothing is started for one."""
    seed: int = 0
    id_prefix: str = "ep-"

    @property
    def batch_samples(self) -> int:
        """N, with the redundancy that a batch costs."""
        return (self.groups_per_batch + self.extra_groups) * (self.group_size + self.extra_members)


@dataclass(frozen=True, slots=True)
class Pace:
    """What may change while the machine runs."""

    alpha: float
    extra_groups: int
    extra_members: int


@dataclass(frozen=True, slots=True)
class SavedGroup:
    index: int
    id: str
    task: str
    seed: int
    members: tuple[Trajectory | None, ...]


@dataclass(frozen=True, slots=True)
class MachineState:
    """What a checkpoint keeps. Episodes in flight are not in it: after a resume they are booked as cancelled."""

    version: int
    position: int
    next_group: int
    next_episode: int
    ledger: LedgerSnapshot
    open_groups: tuple[SavedGroup, ...]
    buffered: tuple[SavedGroup, ...]
    pace: Pace | None = None
    """If it was retuned."""
    most_samples: int = 0
    """The largest N so far."""

    @property
    def kept(self) -> tuple[Trajectory, ...]:
        """The finished episodes in it."""
        return tuple(m for saved in (*self.buffered, *self.open_groups) for m in saved.members if m is not None)


class RolloutMachine:
    def __init__(self, settings: MachineSettings, tasks: TaskQueue, *, version: int = 0) -> None:
        self.settings = settings
        self.admission = Admission(settings.alpha, settings.batch_samples)
        """The bound on everything."""
        self._pace = self.admission
        """What may start; within the bound."""
        self._lenient = (settings.alpha, version)
        """α by which what was started before it was lowered is still fresh, and up to which version."""
        self.tasks = tasks
        self.ledger = Ledger()
        self.engine_version = version
        self.next_version = version
        """The learner's version when it trains on the next batch it takes."""
        self.groups = GroupBook(settings.group_size, settings.extra_members)
        self.buffer = Buffer(self.admission.capacity, settings.order)
        self._closing: dict[str, LedgerState] = {}
        self._next_group = 0
        self._next_episode = 0
        self.filtered_in_a_row = 0

    @property
    def held(self) -> int:
        return self.groups.held + self.buffer.samples + len(self._closing)

    # --- starting ----------------------------------------------------------------------------------------------------

    def next_start(self) -> EpisodeSpec | None:
        """Admit and dispatch the next episode, or None if none may start now."""
        found = self.groups.first_open_place()
        ahead = self._batches_ahead(found[0].index if found else self._next_group)
        last = self.settings.last_version
        if last is not None and self.next_version + ahead >= last:
            return None
        if not self._may_start(ahead, opened=found is not None):
            return None
        group, place = found or (self._open_group(), 0)
        episode_id = self.new_id()
        self.groups.start(group, place, episode_id, self.engine_version)
        sampling_seed = random.Random(f"{self.settings.seed}/{group.index}/{place}").getrandbits(31)
        return EpisodeSpec(episode_id, group.id, group.task, group.seed, sampling_seed, self.engine_version)

    def _may_start(self, ahead: int, *, opened: bool) -> bool:
        # A group of the next batch is finished even when α was lowered below what is held: else nothing would ever end.
        admission = self.admission if opened and ahead == 0 else self._pace
        return self._pace.is_fresh(self.engine_version, self.next_version + ahead) and admission.may_start(
            held=self.held,
            batches_ahead=ahead,
            engine_version=self.engine_version,
            next_version=self.next_version,
        )

    @property
    def pace(self) -> Pace:
        return Pace(self._pace.alpha, self.settings.extra_groups, self.settings.extra_members)

    def retune(self, pace: Pace) -> None:
        """From here on start episodes by ``pace``. Raises ValueError for an α above that of the settings."""
        if pace.alpha > self.settings.alpha:
            raise ValueError(f"alpha={pace.alpha} exceeds the run's bound of {self.settings.alpha}")
        if pace.extra_groups and self.settings.order == "opened":
            raise ValueError("extra groups need the order 'finished': in the order of opening all are kept")
        before = self._alpha
        if pace.alpha < before:
            self._lenient = (before, self.next_version + math.floor(before))
        self.settings = replace(self.settings, extra_groups=pace.extra_groups, extra_members=pace.extra_members)
        self.groups.extra_members = pace.extra_members
        self._pace = Admission(pace.alpha, self.settings.batch_samples)
        self._raise_bound(self.settings.batch_samples)

    @property
    def _alpha(self) -> float:
        """By which samples are fresh now."""
        alpha, until = self._lenient
        return max(self._pace.alpha, alpha) if self.next_version <= until else self._pace.alpha

    def _oldest_fresh(self) -> int:
        return self.next_version - math.floor(self._alpha)

    def _raise_bound(self, samples: int) -> None:
        """Never lowered: what it admitted may still be held."""
        self.admission = Admission(self.settings.alpha, max(self.admission.batch_samples, samples))
        self.buffer.max_samples = self.admission.capacity

    def _batches_ahead(self, index: int) -> int:
        groups_ahead = self.groups.before(index) + self.buffer.before(index)
        return groups_ahead // (self.settings.groups_per_batch + self.settings.extra_groups)

    def new_id(self) -> str:
        """Dispatch one more episode in the ledger and name it."""
        episode_id = f"{self.settings.id_prefix}{self._next_episode:06d}"
        self._next_episode += 1
        self.ledger.dispatch(episode_id)
        return episode_id

    def _open_group(self) -> OpenGroup:
        task, seed = self.tasks.take()
        group = self.groups.open(self._next_group, f"g-{self._next_group:06d}", task, seed)
        self._next_group += 1
        return group

    # --- ending ------------------------------------------------------------------------------------------------------

    def finished(self, trajectory: Trajectory) -> Effects:
        """An episode's coroutine has ended, in whatever way."""
        closing = self._closing.pop(trajectory.id, None)
        if closing is not None:
            return Effects(booked=(self._book(trajectory, closing),))
        if isinstance(trajectory.outcome, Void):
            return self._voided(trajectory)
        group = self.groups.finish(trajectory)
        done = self.groups.complete(group)
        if done is None:
            return Effects()
        ready, surplus = done
        return self._completed(ready) + self._cancel(surplus, LedgerState.CANCELLED)

    def _voided(self, trajectory: Trajectory) -> Effects:
        group = self.groups.void(trajectory.id)
        effects = Effects(booked=(self._book(trajectory, LedgerState.VOID),))
        outcome = trajectory.outcome
        if isinstance(outcome, Void) and outcome.cause is VoidCause.QUARANTINED:
            self.tasks.leave_out(trajectory.task)
        elif group.voids < self.settings.max_voids_per_group:
            return effects
        return effects + self._give_up(group, LedgerState.CANCELLED)  # this task breaks every sandbox it meets

    def _completed(self, ready: ReadyGroup) -> Effects:
        if self.settings.filter_zero_variance and not has_signal(ready.group):
            self.filtered_in_a_row += 1
            return Effects(booked=tuple(self._book(m, LedgerState.FILTERED) for m in ready.group.members))
        self.filtered_in_a_row = 0
        self.buffer.put(ready)
        return Effects()

    def is_closing(self, episode_id: str) -> bool:
        """Whether the episode was given up and only its coroutine has yet to end."""
        return episode_id in self._closing

    def book_measured(self, trajectory: Trajectory, state: LedgerState) -> Booking:
        """The end of an episode that was named by :meth:`new_id` and belongs to no group."""
        return self._book(trajectory, state)

    # --- batches and versions ----------------------------------------------------------------------------------------

    def batch_ready(self) -> bool:
        return self.buffer.has(self.settings.groups_per_batch, oldest_open=self.groups.oldest)

    def take_batch(self) -> tuple[tuple[Group, ...], Effects]:
        """The groups to train on at ``next_version``, and the end of everything that is too old for the batch after."""
        if not self.batch_ready():
            raise ValueError("take_batch without a ready batch; ask batch_ready first")
        oldest = self._oldest_fresh()
        taken = self.buffer.take(self.settings.groups_per_batch, min_version=oldest)
        self.next_version += 1
        return tuple(g.group for g in taken), self._drop_stale()

    def trained(self, groups: tuple[Group, ...]) -> Effects:
        return Effects(booked=tuple(self._book(m, LedgerState.TRAINED) for g in groups for m in g.members))

    def published(self, version: int) -> None:
        """The engine now samples with ``version``; episodes started from here on are initiated by it."""
        self.engine_version = version

    def _drop_stale(self) -> Effects:
        oldest = self._oldest_fresh()
        members = [m for ready in self.buffer.evict(oldest) for m in ready.group.members]
        effects = Effects(booked=tuple(self._book(m, LedgerState.STALE) for m in members))
        for group in self.groups.older_than(oldest):
            effects += self._give_up(group, LedgerState.STALE)
        return effects

    def close(self) -> Effects:
        """The run ends: cancel what is being played and book what nobody will train on."""
        members = [m for ready in self.buffer.evict(self.next_version + 1) for m in ready.group.members]
        effects = Effects(booked=tuple(self._book(m, LedgerState.CANCELLED) for m in members))
        for group in list(self.groups):
            effects += self._give_up(group, LedgerState.CANCELLED)
        return effects

    def _give_up(self, group: OpenGroup, state: LedgerState) -> Effects:
        self.groups.remove(group)
        booked = tuple(self._book(m, state) for m in group.finished())
        return Effects(booked=booked) + self._cancel(tuple(group.running()), state)

    def _cancel(self, running: tuple[Running, ...], state: LedgerState) -> Effects:
        """They stay in flight until their coroutines have ended and told their cost."""
        self._closing.update({r.episode_id: state for r in running})
        return Effects(cancel=tuple(r.episode_id for r in running))

    def _book(self, trajectory: Trajectory, state: LedgerState) -> Booking:
        self.ledger.book(trajectory.id, state, tokens=trajectory.spent_tokens, sandbox_s=trajectory.sandbox_s)
        return Booking(trajectory.id, state, self.next_version, trajectory)

    # --- checkpoint --------------------------------------------------------------------------------------------------

    def state(self) -> MachineState:
        open_groups = tuple(
            SavedGroup(g.index, g.id, g.task, g.seed, tuple(p if isinstance(p, Trajectory) else None for p in g.places))
            for g in self.groups
        )
        buffered = tuple(
            SavedGroup(g.index, g.group.id, g.group.task, g.group.members[0].seed, g.group.members)
            for g in self.buffer.groups
        )
        return MachineState(
            self.next_version, self.tasks.position, self._next_group, self._next_episode,
            self.ledger.snapshot(), open_groups, buffered, self.pace, self.admission.batch_samples,
        )  # fmt: skip

    def restore(self, state: MachineState) -> Effects:
        """Continue from a checkpoint taken between training steps; books what was in flight then as cancelled."""
        self.engine_version = self.next_version = state.version
        self.tasks.position = state.position
        self._next_group, self._next_episode = state.next_group, state.next_episode
        self._raise_bound(state.most_samples)
        self.ledger = Ledger.restore(state.ledger)
        for saved in state.buffered:
            members = tuple(m for m in saved.members if m is not None)
            self.buffer.put(ReadyGroup(saved.index, Group(saved.id, saved.task, members)))
        for saved in state.open_groups:
            self.groups.open(saved.index, saved.id, saved.task, saved.seed, saved.members)
        kept = {m.id for m in state.kept}
        lost = [i for i in state.ledger.in_flight if i not in kept]
        for episode_id in lost:
            self.ledger.book(episode_id, LedgerState.CANCELLED)
        booked = tuple(Booking(i, LedgerState.CANCELLED, self.next_version) for i in lost)
        return Effects(booked=booked) + self._drop_stale()

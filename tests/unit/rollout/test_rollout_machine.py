"""The pure core of rollout, under arbitrary completions, losses, cancels, publications and restarts."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rock.domain.outcome import Completed, LedgerState, Truncated, Void, VoidCause
from roll_core.rollout.admission import Admission
from roll_core.rollout.groups import reward_of
from roll_core.rollout.ledger import Ledger, LedgerError
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import Booking, Effects, EpisodeSpec
from roll_core.types import Trajectory


def trajectory(spec: EpisodeSpec, outcome: Completed | Truncated | Void) -> Trajectory:
    return Trajectory(
        id=spec.id, group_id=spec.group_id, env="e", task=spec.task, seed=spec.seed,
        init_version=spec.init_version, turns=(), outcome=outcome,
    )  # fmt: skip


class Driver:
    """A scheduler, an engine and a learner in a few lines: random order of events, every invariant checked."""

    def __init__(self, machine: RolloutMachine, rng: random.Random, concurrency: int, void_rate: float) -> None:
        self.machine = machine
        self.rng = rng
        self.concurrency = concurrency
        self.void_rate = void_rate
        self.running: dict[str, EpisodeSpec] = {}
        self.cancelled: set[str] = set()
        self.booked: dict[str, LedgerState] = {}
        self.dispatched: set[str] = set()
        self.batches = 0
        self.training: tuple | None = None

    def apply(self, effects: Effects) -> None:
        for booking in effects.booked:
            self._booked(booking)
        for episode_id in effects.cancel:
            assert episode_id in self.running
            assert episode_id not in self.cancelled
            self.cancelled.add(episode_id)

    def _booked(self, booking: Booking) -> None:
        assert booking.episode_id not in self.booked, "booked twice"
        assert booking.episode_id in self.dispatched
        self.booked[booking.episode_id] = booking.state

    def start_all(self) -> None:
        while len(self.running) < self.concurrency and (spec := self.machine.next_start()) is not None:
            assert spec.id not in self.dispatched
            self.dispatched.add(spec.id)
            self.running[spec.id] = spec
        self.check()

    def check(self) -> None:
        machine = self.machine
        assert machine.held <= machine.admission.capacity
        assert machine.ledger.dispatched == len(self.dispatched)
        assert machine.ledger.count(LedgerState.IN_FLIGHT) == len(self.dispatched) - len(self.booked)
        machine.ledger.check()

    def end_one(self) -> None:
        episode_id = self.rng.choice(sorted(self.running))
        spec = self.running.pop(episode_id)
        if episode_id in self.cancelled and self.rng.random() < 0.5:
            outcome = Truncated("cancelled")
        elif self.rng.random() < self.void_rate:
            outcome = Void(VoidCause.SANDBOX_LOST)
        else:
            outcome = Completed(float(self.rng.random() < 0.5), success=True)
        self.apply(self.machine.finished(trajectory(spec, outcome)))

    def take(self) -> None:
        version = self.machine.next_version
        groups, effects = self.machine.take_batch()
        settings_ = self.machine.settings
        assert len(groups) == settings_.groups_per_batch
        for group in groups:
            assert len(group.members) == settings_.group_size
            assert {m.task for m in group.members} == {group.task}
            assert len({m.seed for m in group.members}) == 1
            for member in group.members:
                assert version - member.init_version <= settings_.alpha
                assert not isinstance(member.outcome, Void)
        self.apply(effects)
        self.training = groups

    def publish(self) -> None:
        assert self.training is not None
        self.apply(self.machine.trained(self.training))
        self.training = None
        self.batches += 1
        self.machine.published(self.machine.next_version)

    def run(self, batches: int) -> None:
        for _ in range(20_000):
            self.start_all()
            if self.batches == batches:
                return
            choices = []
            if self.running:
                choices += [self.end_one] * 4
            if self.training is None and self.machine.batch_ready():
                choices.append(self.take)
            if self.training is not None:
                choices.append(self.publish)
            assert choices, "nothing can happen any more: no progress"
            self.rng.choice(choices)()
            self.check()
        raise AssertionError("too many events for so few batches")


alphas = st.sampled_from([0, 0.25, 0.5, 1, 1.5, 2, 3.7])


@st.composite
def machine_settings(draw: st.DrawFn) -> MachineSettings:
    return MachineSettings(
        alpha=draw(alphas),
        group_size=draw(st.integers(1, 4)),
        groups_per_batch=draw(st.integers(1, 4)),
        extra_members=draw(st.integers(0, 2)),
        extra_groups=draw(st.integers(0, 2)),
        order=draw(st.sampled_from(["opened", "finished"])),
        filter_zero_variance=False,
        max_voids_per_group=draw(st.sampled_from([1, 3, 1000])),
    )


@given(machine_settings(), st.integers(), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.5]), st.booleans())
@settings(max_examples=150)
def test_any_order_of_events_keeps_every_invariant(config, seed, concurrency, void_rate, filtering) -> None:
    config = MachineSettings(
        **{f: getattr(config, f) for f in config.__slots__}
        | {"filter_zero_variance": filtering and config.group_size > 1}
    )
    rng = random.Random(seed)
    driver = Driver(RolloutMachine(config, TaskQueue(["a", "b", "c"], 0)), rng, concurrency, void_rate)
    driver.run(batches=4)
    driver.apply(driver.machine.close())
    while driver.running:
        driver.end_one()
    if driver.training is not None:
        driver.publish()
    assert driver.machine.ledger.count(LedgerState.IN_FLIGHT) == 0
    assert driver.booked.keys() == driver.dispatched
    if void_rate == 0 and config.order == "opened" and config.extra_groups == 0:
        assert LedgerState.STALE not in driver.booked.values(), "in the order of opening nothing can become stale"


@given(machine_settings(), st.integers(), st.integers(1, 12))
@settings(max_examples=80)
def test_a_restart_from_a_checkpoint_loses_and_doubles_nothing(config, seed, concurrency) -> None:
    rng = random.Random(seed)
    first = Driver(RolloutMachine(config, TaskQueue(["a", "b"], 0)), rng, concurrency, 0.1)
    first.run(batches=2)
    saved = first.machine.state()
    finished_before = {m.id for g in (*saved.open_groups, *saved.buffered) for m in g.members if m is not None}
    again = RolloutMachine(config, TaskQueue(["a", "b"], 0))
    second = Driver(again, rng, concurrency, 0.1)
    second.dispatched, second.booked = set(first.dispatched), dict(first.booked)
    second.apply(again.restore(saved))
    second.check()
    kept = {i for i in second.dispatched if i not in second.booked}
    assert kept <= finished_before
    second.run(batches=2)


def test_alpha_zero_starts_one_batch_per_version() -> None:
    machine = RolloutMachine(MachineSettings(0, group_size=2, groups_per_batch=2), TaskQueue(["a"], 0))
    specs = [machine.next_start() for _ in range(5)]
    assert [s is not None for s in specs] == [True] * 4 + [False]
    for i, spec in enumerate(specs[:4]):
        machine.finished(trajectory(spec, Completed(float(i % 2), True)))
    groups, _ = machine.take_batch()
    assert machine.next_start() is None, "the learner trains: nothing may start before its weights are published"
    machine.trained(groups)
    assert machine.next_start() is None
    machine.published(1)
    assert machine.next_start() is not None


def test_a_void_member_is_replaced_with_the_same_seeds() -> None:
    machine = RolloutMachine(MachineSettings(0, group_size=2, groups_per_batch=1), TaskQueue(["a"], 0))
    first, second = machine.next_start(), machine.next_start()
    machine.finished(trajectory(first, Void(VoidCause.DEADLINE)))
    again = machine.next_start()
    assert (again.task, again.seed, again.sampling_seed, again.group_id) == (
        first.task, first.seed, first.sampling_seed, first.group_id,
    )  # fmt: skip
    assert again.id != first.id
    machine.finished(trajectory(second, Completed(1.0, True)))
    assert not machine.batch_ready()
    machine.finished(trajectory(again, Completed(0.0, False)))
    assert machine.batch_ready()


def test_a_group_without_signal_is_filtered_and_another_takes_its_place() -> None:
    machine = RolloutMachine(MachineSettings(0, group_size=2, groups_per_batch=1), TaskQueue(["a", "b"], 0))
    specs = [machine.next_start(), machine.next_start()]
    booked = [b for s in specs for b in machine.finished(trajectory(s, Completed(1.0, True))).booked]
    assert [b.state for b in booked] == [LedgerState.FILTERED] * 2
    assert machine.next_start() is not None


def test_redundant_members_are_cancelled_when_enough_have_finished() -> None:
    config = MachineSettings(0, group_size=2, groups_per_batch=1, extra_members=1)
    machine = RolloutMachine(config, TaskQueue(["a"], 0))
    specs = [machine.next_start() for _ in range(3)]
    machine.finished(trajectory(specs[0], Completed(1.0, True)))
    effects = machine.finished(trajectory(specs[2], Completed(0.0, False)))
    assert effects.cancel == (specs[1].id,)
    assert machine.batch_ready()
    late = machine.finished(trajectory(specs[1], Completed(0.0, False)))
    assert [b.state for b in late.booked] == [LedgerState.CANCELLED]


def test_a_task_that_breaks_every_sandbox_is_given_up() -> None:
    config = MachineSettings(0, group_size=1, groups_per_batch=1, max_voids_per_group=2, filter_zero_variance=False)
    machine = RolloutMachine(config, TaskQueue(["bad", "good"], 0))
    groups = []
    for _ in range(3):
        spec = machine.next_start()
        groups.append(spec.group_id)
        machine.finished(trajectory(spec, Void(VoidCause.ENVIRONMENT_ERROR)))
    assert groups[0] == groups[1] != groups[2]


def test_a_void_trajectory_has_no_reward() -> None:
    machine = RolloutMachine(MachineSettings(0, group_size=1, groups_per_batch=1), TaskQueue(["a"], 0))
    spec = machine.next_start()
    with pytest.raises(ValueError, match="void"):
        reward_of(trajectory(spec, Void(VoidCause.DEADLINE)))


@given(st.decimals(0, 8, places=2), st.integers(1, 5000))
def test_capacity_rounds_down_exactly(alpha, samples) -> None:
    assert Admission(float(alpha), samples).capacity == math.floor((1 + alpha) * samples)


@given(alphas, st.integers(1, 20), st.integers(0, 80), st.integers(0, 5), st.integers(0, 5), st.integers(0, 1))
def test_what_is_admitted_is_fresh_in_the_batch_it_reaches(alpha, samples, held, ahead, version, training) -> None:
    admission = Admission(alpha, samples)
    if admission.may_start(held=held, batches_ahead=ahead, engine_version=version, next_version=version + training):
        assert held < admission.capacity
        assert version + training + ahead - version <= alpha


def test_the_ledger_refuses_to_book_twice() -> None:
    ledger = Ledger()
    ledger.dispatch("ep-1")
    ledger.book("ep-1", LedgerState.VOID)
    with pytest.raises(LedgerError):
        ledger.book("ep-1", LedgerState.TRAINED)
    with pytest.raises(LedgerError):
        ledger.book("ep-2", LedgerState.TRAINED)


@given(st.integers(1, 7), st.integers(), st.integers(0, 30))
def test_tasks_come_once_per_pass_and_continue_from_any_position(count, seed, position) -> None:
    tasks = [str(i) for i in range(count)]
    queue = TaskQueue(tasks, seed)
    taken = [queue.take() for _ in range(position + count)]
    assert TaskQueue(tasks, seed, position).take() == [*taken, queue.take()][position]
    for epoch in range(len(taken) // count):
        assert sorted(t for t, _ in taken[epoch * count : (epoch + 1) * count]) == sorted(tasks)

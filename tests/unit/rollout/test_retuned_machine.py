"""α and redundancy change while the machine runs: the bounds hold all the same, and there is always progress."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roll_core.rollout.machine import MachineSettings, Pace, RolloutMachine
from roll_core.rollout.tasks import TaskQueue

from .test_rollout_machine import Driver


class Retuning(Driver):
    """Changes the pace at any moment. ``check`` and ``take`` of the driver hold it to the bounds."""

    def __init__(self, config: MachineSettings, seed: int, concurrency: int, void_rate: float) -> None:
        machine = RolloutMachine(config, TaskQueue(["a", "b", "c"], 0))
        super().__init__(machine, random.Random(seed), concurrency, void_rate)
        self.alpha = config.alpha
        self.most_samples = config.batch_samples

    def check(self) -> None:
        super().check()
        assert self.machine.held <= (1 + self.alpha) * self.most_samples
        assert self.machine.buffer.samples <= self.machine.buffer.max_samples

    def start_all(self) -> None:
        if self.rng.random() < 0.2:
            finished = self.machine.settings.order == "finished"
            self.machine.retune(
                Pace(
                    alpha=self.rng.choice([a for a in (0, 0.5, 1, 2, 3.7) if a <= self.alpha]),
                    extra_groups=self.rng.randrange(3) if finished else 0,
                    extra_members=self.rng.randrange(3),
                )
            )
            self.most_samples = max(self.most_samples, self.machine.settings.batch_samples)
        before, version = set(self.running), self.machine.next_version
        super().start_all()
        for episode in self.running.keys() - before:
            assert version - self.running[episode].init_version <= self.machine.pace.alpha

    def again(self) -> None:
        """Killed and resumed: what was in flight is played again, under the same bounds."""
        state = self.machine.state()
        resumed = RolloutMachine(self.machine.settings, TaskQueue(["a", "b", "c"], 0))
        resumed.restore(state)
        assert resumed.held <= resumed.admission.capacity
        assert resumed.batch_ready() or resumed.next_start() is not None


@st.composite
def configs(draw: st.DrawFn) -> MachineSettings:
    return MachineSettings(
        alpha=draw(st.sampled_from([0, 0.5, 1, 2, 3.7])),
        group_size=draw(st.integers(1, 4)),
        groups_per_batch=draw(st.integers(1, 4)),
        order=draw(st.sampled_from(["opened", "finished"])),
        filter_zero_variance=False,
    )


@given(configs(), st.integers(), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=200)
def test_bounds_hold_when_the_pace_changes_in_mid_run(config, seed, concurrency, void_rate) -> None:
    driver = Retuning(config, seed, concurrency, void_rate)
    driver.run(batches=5)
    driver.again()
    driver.apply(driver.machine.close())
    while driver.running:
        driver.end_one()
    assert set(driver.booked) == driver.dispatched


@given(st.integers(), st.integers(1, 12))
@settings(max_examples=40)
def test_once_what_was_started_before_is_through_a_lower_alpha_is_the_bound(seed, concurrency) -> None:
    driver = Driver(
        RolloutMachine(MachineSettings(3, 2, 2, order="finished", filter_zero_variance=False), TaskQueue(["a"], 0)),
        random.Random(seed), concurrency, 0.0,
    )  # fmt: skip
    driver.run(batches=3)
    driver.machine.retune(Pace(1, 1, 1))
    lowered_at = driver.machine.next_version
    take = driver.machine.take_batch

    def checked():
        version = driver.machine.next_version
        groups, effects = take()
        if version > lowered_at + 3:
            assert all(version - m.init_version <= 1 for g in groups for m in g.members)
        return groups, effects

    driver.machine.take_batch = checked
    driver.run(batches=12)


def test_alpha_may_be_lowered_and_raised_again_up_to_the_bound_of_the_run() -> None:
    machine = RolloutMachine(MachineSettings(2, 2, 2), TaskQueue(["a"], 0))

    def started() -> int:
        count = 0
        while machine.next_start() is not None:
            count += 1
        return count

    machine.retune(Pace(0, 0, 0))
    assert started() == 4, "one batch: synchronous"
    machine.retune(Pace(2, 0, 0))
    assert started() == 8, "and two more"
    with pytest.raises(ValueError, match="exceeds the run's bound of 2"):
        machine.retune(Pace(2.5, 0, 0))
    with pytest.raises(ValueError, match="'finished'"):
        machine.retune(Pace(1, 1, 0))

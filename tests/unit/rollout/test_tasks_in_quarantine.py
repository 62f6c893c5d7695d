"""A task in quarantine: its group is given up at once, the queue passes it over, and one of several is always left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.errors import EnvironmentError as EnvironmentFailed
from rock.domain.errors import Quarantined, TaskQuarantined
from rock.domain.outcome import LedgerState, Void, VoidCause
from roll_core.rollout.episode import void_cause
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.tasks import TaskQueue
from roll_core.types import Trajectory


def test_its_group_is_given_up_at_once_and_it_is_not_taken_again() -> None:
    machine = RolloutMachine(MachineSettings(0, group_size=2, groups_per_batch=2), TaskQueue(["bad", "good"], 0))
    specs = [spec for spec in (machine.next_start() for _ in range(4)) if spec is not None]
    bad = next(spec for spec in specs if spec.task == "bad")
    void = Trajectory(
        id=bad.id, group_id=bad.group_id, env="e", task="bad", seed=bad.seed, init_version=0, turns=(),
        outcome=Void(VoidCause.QUARANTINED),
    )  # fmt: skip
    effects = machine.finished(void)
    assert (effects.booked[0].episode_id, effects.booked[0].state) == (bad.id, LedgerState.VOID)
    sibling = next(spec.id for spec in specs if spec.task == "bad" and spec.id != bad.id)
    assert sibling in effects.cancel
    assert {machine.tasks.take()[0] for _ in range(20)} == {"good"}


def test_when_every_task_is_in_quarantine_all_are_tried_again() -> None:
    queue = TaskQueue(["a", "b"], 0)
    queue.leave_out("a")
    queue.leave_out("b")
    assert {queue.take()[0] for _ in range(4)} == {"a", "b"}


@given(st.sets(st.sampled_from("abcdef"), max_size=5), st.integers(0, 50))
def test_the_others_come_in_the_order_they_would_have_come_in(left_out: set[str], seed: int) -> None:
    plain, queue = TaskQueue(list("abcdef"), seed), TaskQueue(list("abcdef"), seed)
    for task in left_out:
        queue.leave_out(task)
    expected = [taken for taken in (plain.take() for _ in range(30)) if taken[0] not in left_out]
    assert [queue.take() for _ in expected] == expected


def test_a_quarantined_task_and_a_quarantined_image_are_told_apart() -> None:
    assert void_cause(TaskQuarantined("task"), "reset") is VoidCause.QUARANTINED
    assert void_cause(TaskQuarantined("the task's image"), "open") is VoidCause.QUARANTINED
    assert void_cause(Quarantined("the environment's image"), "open") is VoidCause.PLATFORM
    assert void_cause(EnvironmentFailed("once"), "reset") is VoidCause.RESET_FAILED

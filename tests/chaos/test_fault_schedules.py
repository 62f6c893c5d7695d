"""Whatever goes wrong and in whatever order: nothing acts or is held twice, everything ends, nothing is left.

A schedule that fails is printed as a call of ``simulate``, which is a test by itself, and as Hypothesis' own blob.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, note, settings
from schedule import At, Cut, Play, Schedule, Starts
from schedules import schedules
from world import simulate

# A killed process closes nothing, its database's connections included.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.mark.timeout(900)
@settings(max_examples=200, print_blob=True, suppress_health_check=_CHECKS)
@given(schedules())
def test_no_schedule_of_faults_breaks_an_invariant(schedule: Schedule) -> None:
    note(str(schedule))
    simulate(schedule)


def test_in_peace_every_episode_completes() -> None:
    """Else the schedules would prove nothing: where no step works, none is done twice either."""
    actions = tuple(At(0.1, Play(3, 0.5)) for _ in range(6))
    found = simulate(Schedule(actions, nodes=2, pool=1, seed=0))
    assert (found["completed"], found["steps"]) == (6, 18)


def test_a_claim_that_went_to_another_node_is_another_epoch() -> None:
    """Found by a schedule: the node that broke off has the sandbox all the same, out of reach, until it returns."""
    simulate(
        Schedule(
            (
                At(0.0, Play(1, 0.0)),
                At(0.0, Starts(0, 0.0, 0, True)),
                At(0.0, Play(1, 0.0)),
                At(2.81, Cut(0, 15.0)),
                At(0.0, Starts(0, 0.0, 0, False)),
            ),
            nodes=2,
            pool=0,
            seed=0,
        )
    )


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=10_000, print_blob=True, suppress_health_check=_CHECKS)
@given(schedules())
def test_nor_do_ten_thousand(schedule: Schedule) -> None:
    note(str(schedule))
    simulate(schedule)

"""A rule that fires pauses the run before the data is trained on; the run goes on with one command when asked to."""

from __future__ import annotations

import pytest

from roll_core.errors import RunPaused
from roll_core.training.alerts import read_alerts
from roll_core.training.replay import read_timeline


def test_a_run_pauses_before_the_step_in_question_and_goes_on_from_its_checkpoint(
    run, make_recipe, run_directory
) -> None:
    stale = {"name": "old", "metric": "step", "kind": "above", "threshold": 4.0, "action": "pause"}
    small = {"rollout": {"group_size": 4, "groups_per_batch": 2}, "evaluation": {"tasks": 2}}
    strict = make_recipe(
        **small,
        training={"steps": 8},
        checkpoint={"every_steps": 2},
        alerts={"standard": False, "rules": [stale]},
    )
    with pytest.raises(RunPaused, match="Alert old at step 5: step is 5, above 4"):
        run(strict, run_directory)
    assert max(read_timeline(run_directory.path).steps) == 4  # the fifth batch never reached the learner
    assert [a["state"] for a in read_alerts(run_directory.path)] == ["firing"]

    relaxed = make_recipe(
        **small, training={"steps": 8}, checkpoint={"every_steps": 2}, alerts={"standard": False, "rules": []}
    )
    assert run(relaxed, run_directory).steps == 8

"""Runs whose learner and engines are actors on two Ray nodes of one host; one of the nodes is killed in the middle."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roll_core.cluster.ray_learner import RayLearner
from roll_core.training.lines import read
from roll_core.training.replay import replay
from tests.integration.cluster.test_ray_nodes import START_TIMEOUT_S, Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'rock-roll[ray]')"
    ),
]
STEPS = 5


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    directory = Path(tempfile.mkdtemp(prefix="ray-"))
    made = Cluster(directory, port=6431, worker_ports=25000, cpus=3)
    made.start()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ray.is_initialized():
            try:
                ray.init(address=made.address, log_to_driver=False)
            except Exception:  # the head takes its time to answer
                if time.monotonic() > deadline:
                    raise
        yield made
    finally:
        ray.shutdown()
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


def recipe_on(make_recipe, cluster: Cluster, *, engines: int):
    return make_recipe(
        placement={"ray": cluster.address, "delta": True},
        engine={"count": engines, "slots": 4},
        learner={"lr": 0.001},
        rollout={"alpha": 0, "group_size": 4, "groups_per_batch": 2, "concurrency": 8},
        algorithm={"filter_zero_variance": False},
        warm_start={"epochs": 4},
        training={"steps": STEPS, "threads": 1},
        checkpoint={"every_steps": 2},
        evaluation={"tasks": 0},
    )


def values_of(directory) -> list[dict[str, float]]:
    lines = [json.loads(line)["values"] for _, line in read(directory.path / "metrics.jsonl")]
    return [values for values in lines if "time/step_s" in values]


def test_a_machine_is_lost_and_the_run_goes_on_from_what_it_had(
    run, make_recipe, run_directory, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    second = cluster.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while sum(node["Alive"] for node in ray.nodes()) < 2:
        assert time.monotonic() < deadline, "the second node did not join"
    original, killed = RayLearner.train_step, []

    def faulty(learner: RayLearner, batch, *, progress=0.0):
        if not killed and learner.version == 3:  # a step after the last checkpoint
            killed.append(True)
            Cluster.kill(second)
        return original(learner, batch, progress=progress)

    monkeypatch.setattr(RayLearner, "train_step", faulty)
    recipe = recipe_on(make_recipe, cluster, engines=1)  # spread: the learner on one, the engine on the other
    assert run(recipe, run_directory).steps == STEPS
    values = values_of(run_directory)
    assert killed
    assert len(values) == STEPS
    assert values[-1]["engine/restarts"] + values[-1]["learner/restarts"] >= 1, "whoever lived there"
    assert all(0 < v["weights/sent_mb"] <= 1.1 * v["weights/whole_mb"] for v in values)

    here = recipe.model_copy(update={"placement": recipe.placement.model_copy(update={"ray": ""})})
    run_directory.create(here, run_directory.identity())
    assert [(one.step, one.same) for one in replay(run_directory)] == [(n, True) for n in range(STEPS + 1)]
    assert ray.util.placement_group_table() == {} or all(
        group["state"] == "REMOVED" for group in ray.util.placement_group_table().values()
    )


def test_a_learner_whose_process_is_killed_is_where_it_was(
    run, make_recipe, run_directory, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, killed = RayLearner.train_step, []

    def faulty(learner: RayLearner, batch, *, progress=0.0):
        if not killed and learner.version == 3:
            killed.append(True)
            learner._cluster.ray.kill(learner._actor)
        return original(learner, batch, progress=progress)

    monkeypatch.setattr(RayLearner, "train_step", faulty)
    recipe = recipe_on(make_recipe, cluster, engines=2)
    assert run(recipe, run_directory).steps == STEPS
    assert [v["learner/restarts"] for v in values_of(run_directory)] == [0.0, 0.0, 0.0, 1.0, 1.0]
    here = recipe.model_copy(update={"placement": recipe.placement.model_copy(update={"ray": ""})})
    run_directory.create(here, run_directory.identity())
    assert [(one.step, one.same) for one in replay(run_directory)] == [(n, True) for n in range(STEPS + 1)]

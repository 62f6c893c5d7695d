"""Runs whose roles are actors on two Ray nodes of one host; actors, or one of the nodes, are killed in the middle."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roll_core.cluster.ray_roles import RayCritics, RayLearner, RayReader, RayReference, RayRole
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


def free_port() -> int:
    """Two runs at once have a head each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    directory = Path(tempfile.mkdtemp(prefix="ray-"))
    made = Cluster(directory, port=free_port(), worker_ports=random.randrange(20000, 30000, 500), cpus=3)
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


def recipe_on(make_recipe, cluster: Cluster, *, engines: int, placement=None, **sections):
    base = {
        "placement": {"ray": cluster.address, **(placement or {})},
        "weights": {"delta": True},
        "engine": {"count": engines, "slots": 4},
        "learner": {"lr": 0.001},
        "rollout": {"alpha": 0, "group_size": 4, "groups_per_batch": 2, "concurrency": 8},
        "algorithm": {"filter_zero_variance": False},
        "warm_start": {"epochs": 4},
        "training": {"steps": STEPS, "threads": 1},
        "checkpoint": {"every_steps": 2},
        "evaluation": {"tasks": 0},
    }
    return make_recipe(**{name: base.get(name, {}) | sections.get(name, {}) for name in base.keys() | sections})


def second_node(cluster: Cluster):
    """Its process, once it has joined."""
    import ray

    process = cluster.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while sum(node["Alive"] for node in ray.nodes()) < 2:
        assert time.monotonic() < deadline, "the second node did not join"
    return process


def assert_replayed_here(recipe, run_directory) -> None:
    """Every step in this process, without Ray, comes to the very weights of the run."""
    here = recipe.model_copy(update={"placement": recipe.placement.model_copy(update={"ray": ""})})
    run_directory.create(here, run_directory.identity())
    assert [(one.step, one.same) for one in replay(run_directory)] == [(n, True) for n in range(STEPS + 1)]


def values_of(directory) -> list[dict[str, float]]:
    lines = [json.loads(line)["values"] for _, line in read(directory.path / "metrics.jsonl")]
    return [values for values in lines if "time/step_s" in values]


def test_a_machine_is_lost_and_the_run_goes_on_from_what_it_had(
    run, make_recipe, run_directory, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    second = second_node(cluster)
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
    told = [v for v in values if "weights/sent_bytes" in v]
    assert len(told) >= STEPS - 1, "in the first step nothing may have been published yet"
    assert all(0 < v["weights/sent_bytes"] <= 1.1 * v["weights/whole_bytes"] for v in told)
    assert_replayed_here(recipe, run_directory)
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
    assert_replayed_here(recipe, run_directory)


def killed_in(monkeypatch: pytest.MonkeyPatch, kind: type[RayRole], method: str, call: int) -> None:
    """The role's actor is killed as it is called for the so-manieth time; not again when a new one catches up."""
    original, calls = getattr(kind, method), 0

    def faulty(role: RayRole, *args):
        nonlocal calls
        calls += 1
        if calls == call:
            role._cluster.ray.kill(role._actor)
        return original(role, *args)

    monkeypatch.setattr(kind, method, faulty)


def test_critics_attention_and_reference_away_are_replaced_and_the_run_is_that_of_one_process(
    run, make_recipe, run_directory, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_node(cluster)
    killed_in(monkeypatch, RayCritics, "train_step", 4)  # a step after the last checkpoint
    killed_in(monkeypatch, RayReader, "rhythm", 2)
    killed_in(monkeypatch, RayReference, "logprobs", 3)
    recipe = recipe_on(
        make_recipe,
        cluster,
        engines=1,
        placement={"critics": "apart", "actor_attn": "colocated", "reference": "apart"},
        algorithm={
            "advantage": "gae", "loss": "ppo", "kl_coef": 0.1, "credit": ["advantage_mask", "rhythm"],
            "filter_zero_variance": False,
        },
        critic={
            "count": 2, "warmup_steps": 1, "hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8,
            "intermediate": 32,
        },
    )  # fmt: skip
    assert run(recipe, run_directory).steps == STEPS
    values = values_of(run_directory)
    restarts = {name: value for name, value in values[-1].items() if name.endswith("/restarts")}
    assert restarts == {
        "engine/restarts": 0.0,
        "learner/restarts": 0.0, "critic/restarts": 1.0, "actor_attn/restarts": 1.0, "reference/restarts": 1.0,
    }  # fmt: skip
    assert [v["critic/restarts"] for v in values] == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert all(v["learner/kl"] >= 0 for v in values[1:])
    assert_replayed_here(recipe, run_directory)
    at_the_end = run_directory.checkpoints(2).latest() / "learner"
    assert (at_the_end / "critics" / "critics.pt").is_file()
    assert (at_the_end / "reference" / "reference.safetensors").is_file()

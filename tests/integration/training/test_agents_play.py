"""Programs that know nothing of the trainer play its episodes over HTTP, and the run learns from them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from roll_core.errors import NoProgress, RecipeError
from roll_core.models import Tokenizer
from roll_core.training import assembly
from roll_core.training.run import RunDirectory

AGENT = Path(__file__).with_name("scripted_agent.py")


@pytest.fixture
def recipe(make_recipe):
    """A small run, played by the trainer or, with a manner, by the scripted agent."""

    def make(manner: str = "", *, tasks: int = 3, deadline_s: float = 60.0):
        command = [sys.executable, str(AGENT), manner]
        return make_recipe(
            rollout={
                "alpha": 0, "group_size": 4, "groups_per_batch": 2, "concurrency": 4, "max_voids_per_group": 1000,
                "source": "agent" if manner else "turns",
            },
            training={"steps": 3, "batch_deadline_s": deadline_s},
            evaluation={"tasks": tasks},
            checkpoint={"every_steps": 3},
            **({"agent": {"command": command}} if manner else {}),
        )  # fmt: skip

    return make


def weights_of(recipe, directory: RunDirectory):
    learner = assembly.make_learner(recipe, assembly.make_model(recipe, Tokenizer.load(directory.tokenizer)))
    learner.load(directory.checkpoints(2).latest() / "learner")
    return learner.weights().tensors


def episodes(directory: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in (directory.path / "episodes.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("plain_engine")
@pytest.mark.parametrize("manner", ["plain", "stream", "tidy"])
def test_a_program_over_http_comes_to_the_weights_of_the_trainers_own_turns(recipe, run, tmp_path, manner) -> None:
    """Nothing is lost on the way: tokens, log-probs, versions, seeds, rewards. Its temperature is not obeyed."""
    own, theirs = RunDirectory(tmp_path / "own"), RunDirectory(tmp_path / "theirs")
    run(recipe(), own)
    run(recipe(manner), theirs)
    expected, found = weights_of(recipe(), own), weights_of(recipe(manner), theirs)
    assert all(expected[name].equal(found[name]) for name in expected)
    kept = ("task", "seed", "outcome", "reward", "turn_count", "generated_tokens", "ledger")
    assert Counter(tuple(e[k] for k in kept) for e in episodes(theirs)) == Counter(
        tuple(e[k] for k in kept) for e in episodes(own)
    )


def test_a_program_that_always_crashes_stops_the_run_and_every_loss_tells_its_last_words(recipe, run, tmp_path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(NoProgress, match="batch"):
        run(recipe("crash", tasks=0, deadline_s=6.0), directory)
    found = [e for e in episodes(directory) if e["ledger"] != "cancelled"]
    assert found
    assert {e["ledger"] for e in found} == {"void"}
    assert all("exit status 3" in e["reason"] and "something went wrong" in e["reason"] for e in found)


def test_a_program_that_is_not_there_is_refused_before_anything_is_played(recipe, run, tmp_path) -> None:
    missing = recipe("plain").model_copy(
        update={"agent": recipe("plain").agent.model_copy(update={"command": ("no-such-program",)})}
    )
    with pytest.raises(RecipeError, match="no program 'no-such-program'"):
        run(missing, RunDirectory(tmp_path / "run"))

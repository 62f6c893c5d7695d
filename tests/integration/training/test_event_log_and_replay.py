"""A run's event log is enough to redo its learner steps to the last bit, and says who sampled what."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rock.domain.outcome import LedgerState
from roll_core.errors import LearnerFailed, RecordError
from roll_core.learners.torch_learner import TorchLearner
from roll_core.training.checkpoint import load_state
from roll_core.training.event_log import FILE
from roll_core.training.lines import read
from roll_core.training.replay import read_timeline, replay
from roll_core.training.run import RunDirectory


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(
        rollout={"alpha": 1, "group_size": 4, "groups_per_batch": 2, "concurrency": 8},
        training={"steps": 6},
        evaluation={"tasks": 2},
        checkpoint={"every_steps": 2},
        learner={"lr": 3e-3, "updates_per_batch": 2, "epochs": 2, "lr_end": 0.1, "warmup_updates": 3},
        algorithm={"loss": "decoupled_ppo", "kl_coef": 0.01, "invalid_action_penalty": 0.1},
    )


def records(directory: RunDirectory) -> list[dict]:
    return [json.loads(line) for _, line in read(directory.path / FILE)]


def die_at(monkeypatch, step: int) -> None:
    steps = 0
    original = TorchLearner.train_step

    def dying(self, batch, **how):
        nonlocal steps
        steps += 1
        if steps == step:
            raise RuntimeError("out of memory")
        return original(self, batch, **how)

    monkeypatch.setattr(TorchLearner, "train_step", dying)


def test_a_replay_has_the_weights_of_every_step(run, recipe, run_directory) -> None:
    run(recipe, run_directory)
    steps = list(replay(run_directory))
    assert [s.step for s in steps] == list(range(7))
    assert all(s.same for s in steps), steps
    assert len({s.weights for s in steps}) == 7
    assert [s.step for s in replay(run_directory, first=4, last=5)] == [4, 5]


def test_a_replay_of_a_run_that_died_leaves_out_what_was_undone(run, recipe, run_directory, monkeypatch) -> None:
    die_at(monkeypatch, 6)
    with pytest.raises(LearnerFailed, match="out of memory"):
        run(recipe, run_directory)
    assert max(read_timeline(run_directory.path).steps) == 6
    run(recipe, run_directory)
    log = records(run_directory)
    assert [r["step"] for r in log if r["e"] == "begin"] == [0, 4]
    assert [r["step"] for r in log if r["e"] == "update"] == [1, 2, 3, 4, 5, 5, 6]
    steps = list(replay(run_directory))
    assert [s.step for s in steps] == list(range(7))
    assert all(s.same for s in steps), steps


def test_a_batch_that_is_not_what_was_trained_on_is_found_where_it_differs(run, recipe, run_directory) -> None:
    run(recipe, run_directory)
    log = records(run_directory)
    third = next(r for r in log if r["e"] == "batch" and r["step"] == 3)
    changed = third["groups"][0][2][0]
    end = next(r for r in log if r["e"] == "end" and r["id"] == changed)
    reward = end["o"].index(1.0) if 1.0 in end["o"] else end["o"].index(0.0)
    end["o"][reward] = 0.5
    (run_directory.path / FILE).write_text("".join(json.dumps(r) + "\n" for r in log))
    assert next(s.step for s in replay(run_directory) if not s.same) == 3


def test_the_log_accounts_for_every_episode_and_every_token(run, recipe, run_directory) -> None:
    run(recipe, run_directory)
    log = records(run_directory)
    kinds = Counter(r["e"] for r in log)
    ledger = load_state(run_directory.checkpoints(2).latest()).machine.ledger
    booked = Counter(r["as"] for r in log if r["e"] == "book")
    # The last evaluation comes after the last checkpoint.
    counts = {state.value: account.episodes for state, account in ledger.accounts.items() if account.episodes}
    assert booked == Counter(counts) + Counter({LedgerState.EVALUATED.value: 2})
    assert kinds["end"] == kinds["book"]
    started = {r["id"] for r in log if r["e"] == "start"}
    assert len(started) == kinds["start"]
    assert kinds["publish"] == kinds["update"] == kinds["batch"] == 6
    tokens = sum(len(turn["i"]) for r in log if r["e"] == "end" for turn in r["t"])
    assert tokens == sum(a.tokens for a in ledger.accounts.values()) + sum(
        len(turn["i"]) for r in log[-4:] if r["e"] == "end" for turn in r["t"]
    )
    for end in (r for r in log if r["e"] == "end"):
        for turn in end["t"]:
            assert sum(count for _, count in turn["v"]) == len(turn["i"])


def test_rock_run_replay_prints_each_step_and_where_it_first_differs(run, recipe, run_directory, monkeypatch) -> None:
    from rock.cli.main import app

    run(recipe, run_directory)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["run", "replay", str(run_directory.path), "--json"])
    lines = [json.loads(line) for line in done.output.splitlines()]
    assert [line["step"] for line in lines] == list(range(7)), done.output
    assert all(line["same"] for line in lines)
    log = (run_directory.path / FILE).read_text()
    fifth = next(s.weights for s in replay(run_directory) if s.step == 5)
    (run_directory.path / FILE).write_text(log.replace(fifth, "0" * 32))
    done = CliRunner().invoke(app, ["run", "replay", str(run_directory.path)])
    assert done.exit_code == 1
    assert "differs first at step 5" in done.output


def test_what_rotation_has_removed_is_told_and_later_checkpoints_serve(run, recipe, run_directory) -> None:
    run(recipe, run_directory)
    log = (run_directory.path / FILE).read_text().splitlines()
    third = next(i for i, line in enumerate(log) if json.loads(line)["e"] == "batch" and json.loads(line)["step"] == 3)
    kept = [line for i, line in enumerate(log) if i >= third or json.loads(line)["e"] == "begin"]
    (run_directory.path / FILE).write_text("\n".join(kept) + "\n")
    assert [s.step for s in replay(run_directory)][-1] == 6
    assert next(replay(run_directory)).step >= 4
    with pytest.raises(RecordError, match="no whole step"):
        list(replay(run_directory, first=0))


def test_a_run_without_a_log_says_so(run, recipe, tmp_path: Path) -> None:
    quiet = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"event_log_mb": 0})})
    directory = RunDirectory(tmp_path / "quiet")
    run(quiet.model_copy(update={"training": recipe.training.model_copy(update={"steps": 1})}), directory)
    assert not (directory.path / FILE).exists()
    with pytest.raises(RecordError, match="event_log_mb"):
        list(replay(directory))

"""Checkpoints are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dashboard.frames import before_after
from rock.domain.outcome import Completed, LedgerState, Truncated, Void, VoidCause
from roll_core.errors import CheckpointError
from roll_core.rollout.ledger import Account, LedgerSnapshot
from roll_core.rollout.machine import MachineState, SavedGroup
from roll_core.training.checkpoint import CheckpointStore, TrainerState, load_state
from roll_core.training.metrics import Rate
from roll_core.types import Generation, Trajectory, Turn

text = st.text(max_size=8)
numbers = st.floats(-10, 10)
outcomes = st.one_of(
    st.builds(Completed, numbers, st.booleans()),
    st.builds(Truncated, text, numbers, st.booleans()),
    st.builds(Void, st.sampled_from(VoidCause), text),
)
ids = st.lists(st.integers(0, 999), max_size=4).map(tuple)
generations = st.builds(
    Generation, ids, st.lists(numbers, max_size=4).map(tuple), ids, st.sampled_from(["stop", "length"])
)
turns = st.builds(Turn, ids, generations, text, text, text, numbers)
trajectories = st.builds(
    Trajectory,
    text,
    text,
    text,
    text,
    st.integers(0, 9),
    st.integers(0, 9),
    st.lists(turns, max_size=2).map(tuple),
    outcomes,
)
groups = st.builds(
    SavedGroup, st.integers(0, 9), text, text, st.integers(0, 9),
    st.lists(st.none() | trajectories, max_size=3).map(tuple),
)  # fmt: skip


def state(step: int, saved: tuple[SavedGroup, ...] = ()) -> TrainerState:
    ledger = LedgerSnapshot(3, ("ep-2",), {LedgerState.TRAINED: Account(2, 5, 1.5)})
    return TrainerState(step, MachineState(step, 7, 3, 3, ledger, saved, ()), 12.5, Rate.of(1, 2))


def save_learner(directory: Path) -> None:
    (directory / "weights").write_bytes(b"w" * 1000)


@given(st.lists(groups, max_size=3).map(tuple))
@settings(max_examples=40)
def test_a_state_comes_back_as_it_was(saved) -> None:
    adapter = TypeAdapter(TrainerState)
    assert adapter.validate_json(adapter.dump_json(state(3, saved))) == state(3, saved)


def test_the_newest_is_found_and_old_ones_go(tmp_path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    paths = [store.save(state(step), save_learner) for step in (1, 2, 3)]
    assert store.latest() == paths[2]
    assert load_state(paths[2]) == state(3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("file", ["learner/weights", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_torn_checkpoint_is_passed_over(tmp_path, file: str, how: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    first, second = store.save(state(1), save_learner), store.save(state(2), save_learner)
    broken = second / file
    broken.unlink() if how == "gone" else broken.write_bytes(broken.read_bytes()[:-3])
    assert store.latest() == first
    with pytest.raises(CheckpointError, match="torn"):
        load_state(second)


def test_a_save_that_dies_half_way_leaves_the_one_before(tmp_path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    first = store.save(state(1), save_learner)

    def full_disk(directory: Path) -> None:
        save_learner(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        store.save(state(2), full_disk)
    assert store.latest() == first
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_resumed_run_tells_of_how_many_episodes_its_first_evaluation_was(tmp_path) -> None:
    saved = CheckpointStore(tmp_path, keep=1).save(state(1), save_learner)
    found = load_state(saved).success_before
    assert found is not None
    (told,) = before_after({"success_before": json.loads(json.dumps(found.as_dict()))})
    assert told.n == 2
    assert isinstance(found.n, int)


def test_the_same_step_can_be_saved_again(tmp_path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(state(1), save_learner)
    assert store.save(state(1), save_learner) == store.latest()

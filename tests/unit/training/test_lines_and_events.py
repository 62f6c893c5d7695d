"""Rotated lines are whole after any crash and bounded; what the event log keeps of an episode is what trains."""

from __future__ import annotations

import json
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rock.domain.outcome import Completed, Truncated, Void, VoidCause
from roll_core.config.algorithm import Algorithm
from roll_core.errors import RecordError
from roll_core.training.batches import make_batch
from roll_core.training.credit_flow import advantages
from roll_core.training.event_log import decode, digest, encode
from roll_core.training.lines import Lines, parts, read, read_at
from roll_core.types import Generation, Group, TrainBatch, Trajectory, Turn, Weights


def texts(path: Path) -> list[bytes]:
    return [line.rstrip(b"\n") for _, line in read(path)]


@given(
    st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=60),
    st.integers(80, 600),
    st.integers(0, 30),
)
@settings(max_examples=60)
def test_the_newest_lines_are_kept_whole_within_the_limit(lines, max_bytes: int, torn: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        for line in lines:  # a process for each line, and each dies in the middle of the next one
            opened = Lines(path, max_bytes)
            opened.append(line)
            opened.close()
            with path.open("ab") as file:
                file.write(b"t" * torn)
        kept = texts(path)
        assert kept == lines[len(lines) - len(kept) :]
        total = sum(len(line) + 1 for line in kept)
        assert total <= max_bytes + 41
        if len(kept) < len(lines):
            assert total >= max_bytes // 8 * 6 - 8 * 41
        assert all(read_at(place) == line for place, line in read(path))


def test_full_files_are_numbered_and_the_oldest_go(tmp_path) -> None:
    opened = Lines(tmp_path / "events.jsonl", 8 * 100)
    for number in range(40):
        opened.append(f"{number:049d}".encode())
    opened.close()
    names = [p.name for p in parts(tmp_path / "events.jsonl")]
    assert names == [f"events-{n:06d}.jsonl" for n in range(13, 20)] + ["events.jsonl"]
    assert [int(line) for line in texts(tmp_path / "events.jsonl")] == list(range(24, 40))


def test_a_disk_that_takes_no_more_is_told(tmp_path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "x.jsonl").symlink_to(full)
    opened = Lines(tmp_path / "x.jsonl", 1000)
    with pytest.raises(RecordError, match="No space left"):
        opened.append(b"x")
    opened.close()


outcomes = st.one_of(
    st.builds(Completed, st.floats(-1, 1), st.booleans()),
    st.builds(Truncated, st.text(max_size=5), st.floats(-1, 1), st.booleans()),
)
tokens = st.tuples(st.integers(0, 50_000), st.floats(-30, 0), st.integers(0, 3))


@st.composite
def turns(draw) -> Turn:
    sampled = draw(st.lists(tokens, max_size=6))
    ids, logprobs, versions = zip(*sampled, strict=True) if sampled else ((), (), ())
    context = draw(st.lists(st.integers(0, 50_000), min_size=1, max_size=4))
    generation = Generation(ids, logprobs, versions, draw(st.sampled_from(["stop", "length", "abort"])))
    seen = draw(st.sampled_from(["a door", "a wall"]))
    return Turn(tuple(context), generation, seen, "said", "done", draw(st.floats(-1, 1)), valid=draw(st.booleans()))


@st.composite
def trajectories(draw) -> Trajectory:
    played = draw(st.lists(turns(), min_size=1, max_size=3))
    return Trajectory("ep-1", "g-1", "e", draw(st.text(max_size=5)), 3, 0, tuple(played), draw(outcomes), "sb-1")


def through_the_log(trajectory: Trajectory) -> Trajectory:
    return decode(json.loads(json.dumps(encode(trajectory))))


@given(st.lists(trajectories(), min_size=2, max_size=3))
@settings(max_examples=60)
def test_a_batch_from_the_log_is_bit_for_bit_the_one_that_was_trained_on(members) -> None:
    before, after = ([Group("g", "t", tuple(group))] for group in (members, [through_the_log(m) for m in members]))
    batches = make_batch(before), make_batch(after)
    for field in fields(TrainBatch):
        if isinstance(getattr(batches[0], field.name), torch.Tensor):
            assert torch.equal(*(getattr(batch, field.name) for batch in batches)), field.name
    for advantage in ("grpo", "gigpo"):
        algorithm = Algorithm(advantage=advantage, negative_weight=0.5, invalid_action_penalty=0.1)
        assert torch.equal(
            advantages(algorithm, batches[0], before, None), advantages(algorithm, batches[1], after, None)
        )


def test_a_void_episode_comes_back_with_its_cause() -> None:
    void = Trajectory("ep-1", "g", "e", "t", 0, 2, (), Void(VoidCause.SANDBOX_LOST, "gone"))
    assert through_the_log(void) == void


def test_the_digest_sees_every_bit_and_every_name() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    base = digest(Weights(0, {"a": tensor}))
    assert base == digest(Weights(7, {"a": tensor.clone()}))
    changed = tensor.clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    others = [{"b": tensor}, {"a": changed}, {"a": tensor.reshape(3, 2)}, {"a": tensor.T}, {"a": tensor.bfloat16()}]
    assert len({base, *(digest(Weights(0, tensors)) for tensors in others)}) == 6

"""Metrics elsewhere: TensorBoard and W&B get what was reported, and neither can end a run."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roll_core.config import Recipe
from roll_core.training.loggers import Guarded, TensorBoardReporter, make_loggers


def recipe(**loggers: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "logged", "env": {"name": "e"}, "warm_start": {"demonstrations": 1}, "loggers": loggers}
    )


async def _report(directory: Path, asked: Recipe) -> None:
    (logger,) = make_loggers(asked, directory, "run-0123456789")
    for step in (1, 2, 3):
        logger.metrics(step, {"rollout/reward": step / 4, "learner/lr": 1e-3})
    await logger.status("completed", summary={"success_after": 0.75})
    await logger.close()


def test_tensorboard_shows_every_step_and_the_recipe(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    asyncio.run(_report(tmp_path, recipe(tensorboard=True)))
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert [(e.step, e.value) for e in seen.Scalars("rollout/reward")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert "recipe/text_summary" in seen.Tags()["tensors"]


@pytest.fixture
def wandb_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B with all it writes under ``tmp_path``. Two directories it makes when it is imported, and removes at an exit
    that a worker of the tests does not have."""
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        import wandb  # noqa: F401
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))


@pytest.mark.usefixtures("wandb_here")
def test_wandb_keeps_an_offline_run_with_the_same_numbers(tmp_path: Path) -> None:
    asyncio.run(_report(tmp_path, recipe(wandb="offline")))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-run-0123456789.wandb")
    until_s = time.monotonic() + 60
    while len(rows := _history(file)) < 3 and time.monotonic() < until_s:
        time.sleep(0.05)  # W&B's own process writes the file, and says nothing when it has
    assert [row["rollout/reward"] for row in rows] == [0.25, 0.5, 0.75]


def _history(file: Path) -> list[dict[str, float]]:
    """The rows of a run's file: protobuf records in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in _log_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            named = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            rows.append({name: json.loads(value) for name, value in named.items() if not name.startswith("_")})
    return rows


def _log_records(content: bytes, block: int = 32768, header: int = 7) -> Iterator[bytes]:
    at, parts = header, b""  # W&B's own header is as long as a record's
    while at + header <= len(content):  # the last record may be half written: it has no end yet
        if block - at % block < header:
            at += block - at % block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        if at + header + size > len(content):
            return
        parts += content[at + header : at + header + size]
        at += header + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_a_logger_that_fails_is_left_out_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = TensorBoardReporter(tmp_path, recipe())
    inner.close()
    inner._writer = None  # whatever it does now raises
    logger = Guarded("TensorBoard", inner)
    with caplog.at_level(logging.ERROR):
        for step in range(3):
            logger.metrics(step, {"a": 1.0})
        asyncio.run(logger.close())
    assert [r.getMessage() for r in caplog.records] == [
        "TensorBoard failed and is left out from now on; metrics.jsonl has everything"
    ]


def test_nothing_is_made_unless_asked_for(tmp_path: Path) -> None:
    assert make_loggers(recipe(), tmp_path, "run-1") == ()
    assert list(tmp_path.iterdir()) == []

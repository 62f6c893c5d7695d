"""A scripted environment that learns in seconds, and what a run needs around it, without a platform."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from roll_core.config import Recipe
from roll_core.config.load import recipe_from_data
from roll_core.engines.renewal import Renewal
from roll_core.engines.router import Router
from roll_core.models import ModelConfig, Tokenizer
from roll_core.rollout.sessions import LocalSessions
from roll_core.training import assembly
from roll_core.training.loop import Summary
from roll_core.training.progress import Display
from roll_core.training.reporting import FileReporter
from roll_core.training.run import RunDirectory, RunIdentity, train
from roll_core.types import Weights

from .plain_engine import PlainEngine

FOLDER = Path(__file__).parent
TASKS = {"train": ["red", "green", "blue"], "test": ["red", "green", "blue"]}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> str:
    """Entry of the scripted environment, importable in this process."""
    monkeypatch.syspath_prepend(str(FOLDER))
    sys.modules.pop("scripted_doors", None)
    return "scripted_doors:Doors"


@pytest.fixture
def sessions(scripted: str) -> LocalSessions:
    return LocalSessions(scripted, tasks=TASKS)


@pytest.fixture
def display() -> Display:
    return Display("test", console=Console(file=StringIO()))


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    return _make_recipe


def _make_recipe(**sections: dict[str, object]) -> Recipe:
    """The tiny recipe of these tests; ``sections`` replace single keys."""
    base: dict[str, dict[str, object]] = {
        "env": {"name": "doors"},
        "platform": {"mode": "local", "local_entry": "scripted_doors:Doors"},
        "model": {
            "hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 64, "max_context": 96,
        },
        "tokenizer": {"vocab_size": 300},
        "engine": {"slots": 16},
        "learner": {"lr": 3e-3},
        "rollout": {
            "concurrency": 16, "group_size": 8, "groups_per_batch": 4, "alpha": 1, "max_turns": 3,
            "max_tokens_per_turn": 8,
        },
        "warm_start": {"demonstrations": 3, "epochs": 44, "batch_size": 3, "lr": 1e-2},
        "evaluation": {"tasks": 60, "temperature": 1.0},
        "training": {"steps": 32, "threads": 1, "batch_deadline_s": 60, "step_deadline_s": 60},
        "checkpoint": {"every_steps": 4},
    }  # fmt: skip
    for section, values in sections.items():
        base[section] = base.get(section, {}) | values
    return recipe_from_data({"name": "test", **base}, "test")


@pytest.fixture
def run_directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def plain_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test sample with :class:`PlainEngine`."""

    def make(recipe: Recipe, config: ModelConfig, weights: Weights, tokenizer: Tokenizer) -> Router:
        engines = [PlainEngine(config, weights) for _ in range(recipe.engine.count)]
        return Router(engines, renewal=Renewal(lambda _, newest: PlainEngine(config, newest), weights, restarts=3))

    monkeypatch.setattr(assembly, "make_engine", make)


@pytest.fixture
def run(sessions: LocalSessions, display: Display, tmp_path: Path) -> Callable[[Recipe, RunDirectory], Summary]:
    """Train a recipe in a run directory, from its newest checkpoint if it has one."""

    async def main(recipe: Recipe, directory: RunDirectory) -> Summary:
        directory.create(recipe, RunIdentity("run-0123456789"))
        reporter = FileReporter(directory.path)
        try:
            return await train(recipe, directory, sessions, reporter, display, demo_cache=tmp_path / "demos")
        finally:
            await reporter.close()

    return lambda recipe, directory: asyncio.run(main(recipe, directory))

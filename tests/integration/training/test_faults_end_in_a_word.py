"""Everything that the trainer waits for is killed or hung: the run ends in recovery or a clear word, never in a hang,
and goes on from its checkpoint when the fault is gone.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator

import pytest

from rock.domain.outcome import LedgerState
from roll_core.engines import torch_engine
from roll_core.engines.torch_engine import TorchEngine
from roll_core.errors import EngineDead, LearnerFailed, NoProgress, PlatformOutage, RecordError
from roll_core.learners.torch_learner import TorchLearner
from roll_core.rollout.concurrency import ConcurrencyController
from roll_core.rollout.sessions import LocalSessions
from roll_core.training import play
from roll_core.training import run as run_module
from roll_core.training.checkpoint import CheckpointStore, load_state
from roll_core.training.reporting import FileReporter

pytestmark = pytest.mark.timeout(180)
STEPS = 5


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(
        platform={"outage_s": 0.5},
        rollout={
            "alpha": 1, "group_size": 4, "groups_per_batch": 2, "concurrency": 8, "step_s": 10.0, "generate_s": 30.0,
            "adaptive_concurrency": True,
        },
        training={"steps": STEPS, "step_deadline_s": 30.0, "batch_deadline_s": 30.0},
        evaluation={"tasks": 0},
        checkpoint={"every_steps": 2},
    )  # fmt: skip


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs waits for it; set in the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


def within_s(recipe, section: str, **deadlines: float):
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=deadlines)})


def at_call(number: int, original: Callable, fault: Callable[[], None]) -> Callable:
    """``original``, with ``fault`` before its call of this number and every later one."""
    calls = 0

    def faulty(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls >= number:
            fault()
        return original(*args, **kwargs)

    return faulty


def raising(error: BaseException) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


def end_thread(name: str) -> None:
    """Raises SystemExit in the thread, wherever it is, if it still lives."""
    for thread in threading.enumerate():
        if thread.name == name and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


@pytest.fixture
def goes_on(run, recipe, run_directory, monkeypatch) -> Callable[[], None]:
    """Without the fault the run continues to its end, and every episode has been booked once."""

    def check() -> None:
        monkeypatch.undo()
        monkeypatch.syspath_prepend(str(importlib.import_module("scripted_doors").__file__).rpartition("/")[0])
        assert run(recipe, run_directory).steps == STEPS
        ledger = load_state(run_directory.checkpoints(2).latest()).machine.ledger
        assert ledger.in_flight == ()
        assert ledger.dispatched == sum(a.episodes for a in ledger.accounts.values())
        assert ledger.accounts[LedgerState.TRAINED].episodes == STEPS * 8

    return check


# --- the engine ------------------------------------------------------------------------------------------------------


def test_an_engine_whose_pass_raises(run, recipe, run_directory, monkeypatch, goes_on) -> None:
    fault = raising(RuntimeError("CUDA error: an illegal memory access"))
    monkeypatch.setattr(TorchEngine, "_pass", at_call(10, TorchEngine._pass, fault))
    with pytest.raises(EngineDead, match="illegal memory access"):
        run(recipe, run_directory)
    goes_on()


def test_an_engine_whose_thread_is_ended(run, recipe, run_directory, monkeypatch, goes_on) -> None:
    monkeypatch.setattr(
        TorchLearner, "train_step", at_call(3, TorchLearner.train_step, lambda: end_thread("torch-engine"))
    )
    with pytest.raises(EngineDead, match="SystemExit"):
        run(within_s(recipe, "engine", restarts=0), run_directory)
    goes_on()


def test_an_engine_whose_thread_is_ended_is_replaced(run, recipe, run_directory, monkeypatch) -> None:
    monkeypatch.setattr(
        TorchLearner, "train_step", at_call(3, TorchLearner.train_step, lambda: end_thread("torch-engine"))
    )
    assert run(within_s(recipe, "engine", restarts=9), run_directory).steps == STEPS
    ledger = load_state(run_directory.checkpoints(2).latest()).machine.ledger
    assert ledger.dispatched == sum(a.episodes for a in ledger.accounts.values())
    assert ledger.accounts[LedgerState.TRAINED].episodes == STEPS * 8


def test_an_engine_that_hangs(run, recipe, run_directory, monkeypatch, gate, goes_on) -> None:
    monkeypatch.setattr(torch_engine, "_CLOSE_S", 0.1)
    monkeypatch.setattr(TorchEngine, "_pass", at_call(10, TorchEngine._pass, gate.wait))
    with pytest.raises(NoProgress, match=r"the engine did not finish ep-.*rollout\.generate_s"):
        run(within_s(recipe, "rollout", generate_s=3.0), run_directory)
    gate.set()
    goes_on()


def test_a_publication_that_hangs(run, recipe, run_directory, monkeypatch, goes_on) -> None:
    async def never(self, weights) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(TorchEngine, "load_weights", never)
    with pytest.raises(NoProgress, match="publishing weights to the engine"):
        run(within_s(recipe, "training", step_deadline_s=1.0), run_directory)
    goes_on()


# --- the learner -----------------------------------------------------------------------------------------------------


def test_a_learner_that_raises(run, recipe, run_directory, monkeypatch, goes_on) -> None:
    fault = raising(RuntimeError("out of memory"))
    monkeypatch.setattr(TorchLearner, "train_step", at_call(4, TorchLearner.train_step, fault))
    with pytest.raises(LearnerFailed, match=r"at version 3 raised RuntimeError.*out of memory"):
        run(recipe, run_directory)
    goes_on()


def test_a_learner_that_hangs(run, recipe, run_directory, monkeypatch, gate, goes_on) -> None:
    monkeypatch.setattr(TorchLearner, "train_step", at_call(4, TorchLearner.train_step, gate.wait))
    with pytest.raises(NoProgress, match=r"the learner's step for 2 s. State: .* in flight"):
        run(within_s(recipe, "training", step_deadline_s=2.0), run_directory)
    goes_on()


def test_a_learner_whose_thread_is_ended(run, recipe, run_directory, monkeypatch, goes_on) -> None:
    fault = raising(SystemExit(3))
    monkeypatch.setattr(TorchLearner, "train_step", at_call(3, TorchLearner.train_step, fault))
    with pytest.raises(LearnerFailed, match="ended it"):
        run(recipe, run_directory)
    goes_on()


def test_a_checkpoint_that_hangs(run, recipe, run_directory, monkeypatch, gate, goes_on) -> None:
    monkeypatch.setattr(CheckpointStore, "save", at_call(2, CheckpointStore.save, gate.wait))
    with pytest.raises(NoProgress, match="writing a checkpoint"):
        run(within_s(recipe, "training", step_deadline_s=2.0), run_directory)
    goes_on()


def test_an_imitation_that_hangs(run, recipe, run_directory, monkeypatch, gate, goes_on) -> None:
    monkeypatch.setattr(TorchLearner, "sft_step", at_call(4, TorchLearner.sft_step, gate.wait))
    with pytest.raises(NoProgress, match="a step of imitation"):
        run(within_s(recipe, "training", step_deadline_s=2.0), run_directory)
    goes_on()


# --- rollout ---------------------------------------------------------------------------------------------------------


def test_episodes_that_are_cancelled_from_outside_are_played_again(
    run, recipe, run_directory, monkeypatch, goes_on
) -> None:
    """As when a library cancels the task it runs in: the producers die, the run does not."""
    original = run_module.Trainer._one_step

    async def stabbing(self) -> bool:
        for _, task in list(self._scheduler._running.values())[:3]:
            task.cancel()
        return await original(self)

    monkeypatch.setattr(run_module.Trainer, "_one_step", stabbing)
    calm = within_s(recipe, "platform", outage_s=60.0)
    assert run(calm, run_directory).steps == STEPS
    accounts = load_state(run_directory.checkpoints(2).latest()).machine.ledger.accounts
    assert accounts[LedgerState.VOID].episodes >= 3
    assert accounts[LedgerState.TRAINED].episodes == STEPS * 8


def test_a_batch_that_never_comes_is_named_with_the_state_of_everything(
    run, recipe, run_directory, monkeypatch, goes_on
) -> None:
    """The buffer never has a batch: a defect that nothing but the deadline can find."""
    from roll_core.rollout.machine import RolloutMachine

    monkeypatch.setattr(RolloutMachine, "batch_ready", lambda self: False)
    with pytest.raises(NoProgress, match=r"a batch of episodes for 2 s\. State: \d+ episodes in flight"):
        run(within_s(recipe, "training", batch_deadline_s=2.0), run_directory)
    goes_on()


def test_a_call_back_that_raises_is_raised_to_who_waits_for_a_batch(
    run, recipe, run_directory, monkeypatch, goes_on
) -> None:
    fault = raising(RecordError("episodes.jsonl cannot be written: No space left on device"))
    monkeypatch.setattr(FileReporter, "episode", at_call(20, FileReporter.episode, fault))
    with pytest.raises(RecordError, match="No space left"):
        run(recipe, run_directory)
    goes_on()


def test_a_regulator_that_dies(run, recipe, run_directory, monkeypatch, goes_on) -> None:
    monkeypatch.setattr(ConcurrencyController, "update", at_call(1, ConcurrencyController.update, raising(KeyError(7))))
    with pytest.raises(KeyError):
        run(recipe, run_directory)
    goes_on()


# --- environments and platform ---------------------------------------------------------------------------------------


@pytest.fixture
def no_margin(monkeypatch) -> None:
    """A deadline of the trainer is then no longer than the recipe's own."""
    monkeypatch.setattr(play, "_CLOSE_MARGIN_S", 0.1)


@pytest.mark.usefixtures("no_margin")
def test_an_environment_that_hangs(run, recipe, run_directory, monkeypatch, goes_on) -> None:
    async def never(self, action):
        await asyncio.Event().wait()

    doors = importlib.import_module("roll_core.rollout.sessions")
    calls = 0
    original = doors._LocalSession.step

    async def step(self, action):
        nonlocal calls
        calls += 1
        return await (never(self, action) if calls > 20 else original(self, action))

    monkeypatch.setattr(doors._LocalSession, "step", step)
    with pytest.raises(PlatformOutage, match="no episode could be played"):
        run(within_s(recipe, "rollout", step_s=0.2, recovery_s=0.1), run_directory)
    goes_on()


@pytest.mark.usefixtures("no_margin")
def test_a_platform_that_does_not_answer(run, recipe, run_directory, monkeypatch, goes_on) -> None:
    from contextlib import asynccontextmanager

    original, opened = LocalSessions.open, 0

    @asynccontextmanager
    async def silent(self, task, seed):
        nonlocal opened
        opened += 1
        if opened > 15:
            await asyncio.Event().wait()
        async with original(self, task, seed) as session:
            yield session

    monkeypatch.setattr(LocalSessions, "open", silent)
    with pytest.raises(PlatformOutage, match="no episode could be played"):
        run(within_s(recipe, "platform", wait_s=0.2), run_directory)
    goes_on()


def test_an_evaluation_whose_episodes_all_break(run, recipe, run_directory, goes_on) -> None:
    """A task whose own code fails says nothing about the platform, so only the deadline ends this."""
    doors = importlib.import_module("scripted_doors")
    evaluated = within_s(within_s(recipe, "evaluation", tasks=4), "training", batch_deadline_s=2.0)
    run(within_s(recipe, "training", steps=1), run_directory)
    doors.break_every = 1
    try:
        with pytest.raises(NoProgress, match="an episode of the evaluation before"):
            run(evaluated, run_directory)
    finally:
        doors.break_every = 0
    goes_on()

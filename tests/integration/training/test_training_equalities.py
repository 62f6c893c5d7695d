"""What must be equal: α = 0 and a synchronous loop; a killed run and an unhurt one; with lost episodes and without."""

from __future__ import annotations

import asyncio
import importlib
import random

import pytest
import torch

from rock.domain.outcome import LedgerState, Void
from roll_core.algorithms import ADVANTAGES, spread
from roll_core.errors import PlatformOutage
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import Tokenizer
from roll_core.rollout.groups import has_signal
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import EpisodeSpec
from roll_core.training import assembly, play, steering, tuner
from roll_core.training.batches import make_batch
from roll_core.training.checkpoint import load_state
from roll_core.training.event_log import digest
from roll_core.training.run import RunDirectory
from roll_core.types import Group, TrainBatch

pytestmark = pytest.mark.usefixtures("plain_engine")


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(
        rollout={"alpha": 0, "group_size": 4, "groups_per_batch": 2, "concurrency": 5},
        training={"steps": 6},
        evaluation={"tasks": 3},
        checkpoint={"every_steps": 2},
    )


@pytest.fixture
def batches(monkeypatch):
    """Every batch that a learner trains on, and the digest of the weights after it."""
    seen: list[tuple[TrainBatch, str]] = []
    original = TorchLearner.train_step

    def recording(self, batch, **how):
        values = original(self, batch, **how)
        seen.append((batch, digest(self.weights())))
        return values

    monkeypatch.setattr(TorchLearner, "train_step", recording)
    return seen


def final_weights(recipe, directory: RunDirectory) -> dict[str, torch.Tensor]:
    tokenizer = Tokenizer.load(directory.tokenizer)
    learner = assembly.make_learner(recipe, assembly.make_model(recipe, tokenizer))
    learner.load(directory.checkpoints(2).latest() / "learner")
    return learner.weights().tensors


TENSORS = (
    "tokens_BT", "mask_BT", "attention_BT", "behaviour_logprobs_BT", "advantages_BT", "versions_BT", "rewards_B",
    "group_B",
)  # fmt: skip


def assert_same_batches(left, right) -> None:
    """Equal in everything that the learner sees, and so are the weights after each."""
    assert len(left) == len(right)
    for (a, weights_a), (b, weights_b) in zip(left, right, strict=True):
        for name in TENSORS:
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert weights_a == weights_b


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


async def synchronous_loop(recipe, directory, sessions, checkpoint) -> dict[str, torch.Tensor]:
    """Play a batch, one episode after the other; train on it; repeat. Nothing of scheduler, machine or loop."""
    tokenizer = Tokenizer.load(directory.tokenizer)
    model = assembly.make_model(recipe, tokenizer)
    learner = assembly.make_learner(recipe, model)
    learner.load(checkpoint / "learner")
    engine = assembly.make_engine(recipe, model.config, learner.weights(), tokenizer)
    player = play.make_player(recipe, sessions, engine, assembly.make_prompter(recipe, tokenizer))
    queue = TaskQueue(await sessions.tasks("train"), recipe.training.seed)
    index = 0
    for version in range(recipe.training.steps):
        groups: list[Group] = []
        while len(groups) < recipe.rollout.groups_per_batch:
            task, seed = queue.take()
            members = []
            for place in range(recipe.rollout.group_size):
                sampling_seed = random.Random(f"{recipe.training.seed}/{index}/{place}").getrandbits(31)
                spec = EpisodeSpec(f"{index}/{place}", str(index), task, seed, sampling_seed, version)
                members.append(await player.episode(spec).play())
            index += 1
            group = Group(str(index), task, tuple(members))
            if has_signal(group):
                groups.append(group)
        batch = make_batch(groups)
        batch.advantages_BT = spread(
            ADVANTAGES[recipe.algorithm.advantage](batch.rewards_B, batch.group_B), batch.mask_BT
        )
        learner.train_step(batch, progress=version / recipe.training.steps)
        await engine.load_weights(learner.weights())
    return learner.weights().tensors


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"env": {"options": {"doors": 1}}, "rollout": {"max_turns": 1}},
        {"rollout": {"concurrency": 1}},
        {"rollout": {"concurrency": 64, "order": "finished"}},
        {"engine": {"count": 3}},
        {"engine": {"count": 2}, "rollout": {"auto": True}},
        {"algorithm": {"loss": "decoupled_ppo"}, "learner": {"updates_per_batch": 2, "epochs": 2, "lr_end": 0.1}},
    ],
    ids=["agent", "one turn", "one at a time", "all at once", "several engines", "self-tuned", "several updates"],
)
def test_alpha_zero_is_a_synchronous_loop_bit_for_bit(
    run, make_recipe, sections, sessions, tmp_path, batches, monkeypatch
) -> None:
    # Self-tuning would react to the speed of this machine: with redundancy, and with threads, which change the bits.
    monkeypatch.setattr(tuner, "_slow_rate", lambda _: 0.0)
    monkeypatch.setattr(steering.os, "sched_getaffinity", lambda _: {0})
    base = {
        "rollout": {"alpha": 0, "group_size": 4, "groups_per_batch": 2, "concurrency": 5},
        "training": {"steps": 6},
        "evaluation": {"tasks": 0},
        "checkpoint": {"keep": 10},
    }
    recipe = make_recipe(**{name: base.get(name, {}) | sections.get(name, {}) for name in base.keys() | sections})
    directory = RunDirectory(tmp_path / "a")
    run(recipe, directory)
    asynchronous = list(batches)
    batches.clear()
    start = directory.path / "checkpoints" / "step-00000000"
    weights = asyncio.run(synchronous_loop(recipe, directory, sessions, start))
    assert len(batches) == 6
    assert len({weights for _, weights in batches}) == 6, "every step changes the weights"
    assert_same_batches(asynchronous, batches)
    assert_equal(final_weights(recipe, directory), weights)
    for version, (batch, _) in enumerate(batches):
        assert (batch.versions_BT[batch.mask_BT > 0] == version).all()


def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(run, recipe, tmp_path, monkeypatch) -> None:
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    run(recipe, whole)
    steps = 0
    original = TorchLearner.train_step

    def dying(self, batch, **how):
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return original(self, batch, **how)

    monkeypatch.setattr(TorchLearner, "train_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, broken)
    assert load_state(broken.checkpoints(2).latest()).step == 4
    summary = run(recipe, broken)
    assert summary.steps == 6
    assert_equal(final_weights(recipe, broken), final_weights(recipe, whole))
    ledger = load_state(broken.checkpoints(2).latest()).machine.ledger
    assert ledger.dispatched == sum(a.episodes for a in ledger.accounts.values())


def test_void_episodes_are_replaced_and_change_nothing(run, recipe, tmp_path, scripted, batches) -> None:
    calm, broken = RunDirectory(tmp_path / "calm"), RunDirectory(tmp_path / "broken")
    run(recipe, calm)
    undisturbed = list(batches)
    batches.clear()
    doors = importlib.import_module("scripted_doors")
    doors.break_every = 9
    run(recipe, broken)
    assert_same_batches(undisturbed, batches)
    assert_equal(final_weights(recipe, broken), final_weights(recipe, calm))
    ledger = load_state(broken.checkpoints(2).latest()).machine.ledger
    assert ledger.accounts[LedgerState.VOID].episodes > 3


def test_a_void_trajectory_cannot_enter_a_batch(recipe) -> None:
    from roll_core.types import Trajectory

    void = Trajectory("ep-1", "g", "e", "t", 0, 0, (), Void("deadline"))
    with pytest.raises(ValueError, match="void"):
        make_batch([Group("g", "t", (void,))])


def test_a_platform_that_stays_away_ends_the_run(run, make_recipe, tmp_path, monkeypatch) -> None:
    from rock.domain.errors import PlatformUnavailable
    from roll_core.rollout.sessions import LocalSessions

    recipe = make_recipe(platform={"outage_s": 0.2}, rollout={"concurrency": 2}, evaluation={"tasks": 0})
    opened = 0
    original = LocalSessions.open

    def vanishing(self, task, seed):
        nonlocal opened
        opened += 1
        if opened > 40:
            raise PlatformUnavailable("No platform answers.")
        return original(self, task, seed)

    monkeypatch.setattr(LocalSessions, "open", vanishing)
    with pytest.raises(PlatformOutage, match="no episode could be played"):
        run(recipe, RunDirectory(tmp_path / "run"))
    assert opened < 100, "back-off, not a busy loop"

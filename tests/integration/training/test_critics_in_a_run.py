"""Runs with critics (AsyPPO): they learn, warm up alone, survive ``kill -9``, and a replay comes to the same.

Every run plays real episodes in this process, samples with a real engine and trains real models.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import yaml

from roll_core.config import Recipe
from roll_core.errors import LearnerFailed, RecipeError
from roll_core.learners.critics import CriticLearner
from roll_core.models import CausalLM, ModelConfig, Tokenizer, save_hf, train_tokenizer
from roll_core.training import assembly
from roll_core.training.event_log import digest
from roll_core.training.replay import replay
from roll_core.training.run import RunDirectory

from .test_killed_trainer import Site, finish, kill_somewhere, nursery

__all__ = ["nursery"]

SMALL = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "intermediate": 32}
ASYPPO = {
    "algorithm": {
        "advantage": "gae", "loss": "ppo", "entropy_coef": 0.001, "credit": ["advantage_mask", "entropy_filter"],
        "filter_zero_variance": False,  # critics learn from what always succeeds, too
    },
    "critic": {"count": 2, "lr": 1e-3, "warmup_steps": 2, "epochs": 2, **SMALL},
}  # fmt: skip


@pytest.fixture
def asyppo(make_recipe):
    def make(**sections) -> Recipe:
        base = {
            "rollout": {"alpha": 1, "group_size": 4, "groups_per_batch": 2, "concurrency": 8},
            "training": {"steps": 6},
            "evaluation": {"tasks": 2},
            "checkpoint": {"every_steps": 2},
            "learner": {"updates_per_batch": 2},
            **ASYPPO,
        }
        return make_recipe(**{name: base.get(name, {}) | sections.get(name, {}) for name in base.keys() | sections})

    return make


def metrics(directory: RunDirectory) -> list[dict[str, float]]:
    """Of every learner step, in order."""
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    return [values for line in lines if "time/step_s" in (values := json.loads(line)["values"])]


def final_critics(recipe: Recipe, directory: RunDirectory) -> CriticLearner:
    model = assembly.make_model(recipe, Tokenizer.load(directory.tokenizer))
    critics = assembly.make_critics(recipe, model)
    assert isinstance(critics, CriticLearner)
    latest = directory.checkpoints(2).latest()
    assert latest is not None
    critics.load(latest / "learner" / "critics")
    return critics


def assert_same_critics(left: CriticLearner, right: CriticLearner) -> None:
    assert len(left.models) == len(right.models)
    for a, b in zip(left.models, right.models, strict=True):
        for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
            assert torch.equal(x, y), name
    for p, q in zip(left._optimizers, right._optimizers, strict=True):
        assert str(p.state_dict()) == str(q.state_dict())


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"algorithm": {"loss": "decoupled_ppo"}, "critic": {"partition": False, "count": 3, "targets": "gae"}},
        {"algorithm": {"loss": "tis", "credit": ["entropy_filter"]}, "rollout": {"alpha": 0}},
        {"algorithm": {"loss": "cispo", "credit": []}, "critic": {"source": "policy", "count": 1}},
        {"algorithm": {"advantage": "grpo"}},
    ],
    ids=["asyppo", "naive ensemble", "synchronous", "symmetric critic", "masks over another advantage"],
)
def test_critics_learn_beside_the_policy_and_a_replay_comes_to_the_same(run, asyppo, run_directory, sections) -> None:
    recipe = asyppo(**sections)
    run(recipe, run_directory)
    told = metrics(run_directory)
    assert len(told) == 6
    for number, values in enumerate(told):
        assert values["critic/updates"] == recipe.critic.count * 2 * 4
        assert values["critic/skipped_updates"] == 0
        assert ("learner/loss" in values) == (number >= 2), "in the first two steps only the critics learn"
        assert ("critic/sigma_mean" in values) == (number >= 2)
    tokens = told[-1]["learner/response_tokens"]
    assert told[-1]["critic/masked_share"] == pytest.approx(int(0.2 * tokens + 1e-9) / tokens)
    if recipe.critic.count > 1:
        assert told[-1]["critic/sigma_mean"] > 0
    steps = list(replay(run_directory))
    assert [s.step for s in steps] == list(range(7))
    assert all(s.same for s in steps), steps
    assert len({s.weights for s in steps}) == 5, "two steps of warm-up leave the policy as it was"


def test_episodes_of_several_turns_cut_off_by_a_limit_bootstrap_and_others_do_not(
    run, asyppo, run_directory, monkeypatch
) -> None:
    """Three doors and two turns: who makes no mistake is cut off, and is worth there what the critics say."""
    recipe = asyppo(env={"options": {"doors": 3}}, warm_start={"options": {"doors": 2}}, rollout={"max_turns": 2})
    seen = []
    original = CriticLearner.train_step

    def watching(self, batch):
        rows = self._rows(batch)
        for share in self._shares(batch, rows):
            for row in share.rows:
                last = int(rows.mask_BT[row].nonzero().max())
                seen.append((bool(batch.truncated_B[row]), float(share.returns_BT[row, last])))
                turns = batch.turn_BT[row]
                assert turns.max() == (1 if batch.truncated_B[row] else turns.max())
        return original(self, batch)

    monkeypatch.setattr(CriticLearner, "train_step", watching)
    run(recipe, run_directory)
    cut, ended = [v for t, v in seen if t], [v for t, v in seen if not t]
    assert len(cut) > 5
    assert len(ended) > 5
    assert all(v != 0 for v in cut)
    assert all(v == 0 for v in ended)


# --- what survives ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plain_engine")
def test_a_run_that_died_and_was_resumed_equals_one_that_did_not(run, asyppo, tmp_path, monkeypatch) -> None:
    recipe = asyppo(rollout={"alpha": 0})
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    run(recipe, whole)
    steps, original = 0, CriticLearner.train_step

    def dying(self, batch):
        nonlocal steps
        steps += 1
        values = original(self, batch)
        if steps == 4:
            raise RuntimeError("out of memory, after the critics have learnt")
        return values

    monkeypatch.setattr(CriticLearner, "train_step", dying)
    with pytest.raises(LearnerFailed, match="out of memory"):
        run(recipe, broken)
    run(recipe, broken)
    assert_same_critics(final_critics(recipe, whole), final_critics(recipe, broken))
    weights = []
    for directory in (whole, broken):
        latest = directory.checkpoints(2).latest()
        assert latest is not None
        roles = assembly.make_roles(recipe, assembly.make_model(recipe, Tokenizer.load(directory.tokenizer)))
        roles.load(latest / "learner")
        weights.append(digest(roles.weights()))
    assert weights[0] == weights[1]


def test_critics_survive_a_kill_at_any_point(tmp_path: Path, nursery) -> None:
    """``kill -9`` of the process, three times; policy and critics end as those of a run that nobody hurt."""
    sites = []
    for name in ("whole", "broken"):
        site = Site(tmp_path / name, alpha=0, steps=6, plain=True)
        recipe = yaml.safe_load(site.recipe.read_text())
        site.recipe.write_text(yaml.safe_dump(recipe | ASYPPO))
        sites.append(site)
    whole = finish(sites[0], nursery)
    rng = random.Random("critics")
    killed = sum(kill_somewhere(sites[1], nursery, rng) for _ in range(3))
    broken = finish(sites[1], nursery)
    assert killed
    recipe = broken.recipe([])
    assert_same_critics(final_critics(recipe, whole), final_critics(recipe, broken))
    assert all(step.same for step in replay(broken))
    assert [s.weights for s in replay(broken)] == [s.weights for s in replay(whole)]


# --- what they are made of -------------------------------------------------------------------------------------------


@pytest.fixture
def policy() -> CausalLM:
    return CausalLM(ModelConfig(vocab=300, hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate=64))


def test_a_symmetric_critic_begins_as_a_copy_of_the_policy_and_shares_nothing_with_it(asyppo, policy) -> None:
    critics = assembly.make_critics(asyppo(critic={"source": "policy"}), policy)
    assert isinstance(critics, CriticLearner)
    for model in critics.models:
        for name, parameter in model.trunk.named_parameters():
            assert torch.equal(parameter, policy.model.get_parameter(name))
            assert parameter.data_ptr() != policy.model.get_parameter(name).data_ptr()
    heads = [model.head.weight for model in critics.models]
    assert not torch.equal(*heads)


def test_new_critics_are_of_the_recipe_s_size_and_begin_apart(asyppo, policy) -> None:
    critics = assembly.make_critics(asyppo(critic={"count": 3}), policy)
    assert isinstance(critics, CriticLearner)
    assert [(m.config.hidden, m.config.layers, m.config.vocab) for m in critics.models] == [(16, 1, 300)] * 3
    embeddings = [m.trunk.embed_tokens.weight for m in critics.models]
    assert not torch.equal(embeddings[0], embeddings[1])
    assert (
        assembly.make_critics(asyppo(critic={"count": 0}, algorithm={"advantage": "grpo", "credit": []}), policy)
        is None
    )


def test_critics_of_a_checkpoint_are_it_and_must_read_the_policy_s_tokens(asyppo, policy, tmp_path) -> None:
    words = train_tokenizer(["red green blue open the door"], 300)
    others = train_tokenizer(["numbers and other things"], 300)
    small = CausalLM(
        ModelConfig(vocab=300, hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, intermediate=32), seed=5
    )
    save_hf(policy, tmp_path / "policy", words)
    save_hf(small, tmp_path / "small", words)
    save_hf(small, tmp_path / "foreign", others)
    from_checkpoints = {
        "model": {"source": "checkpoint", "path": str(tmp_path / "policy")},
        "tokenizer": {"source": "checkpoint"},
        "warm_start": {"demonstrations": 0},
    }

    def critics_of(folder: str, **more):
        recipe = asyppo(critic={"source": "checkpoint", "path": str(tmp_path / folder)}, **more)
        return assembly.make_critics(recipe, policy)

    made = critics_of("small", **from_checkpoints)
    assert isinstance(made, CriticLearner)
    for model in made.models:
        assert torch.equal(model.trunk.embed_tokens.weight, small.model.embed_tokens.weight)
    with pytest.raises(RecipeError, match=r"critic\.path.*gives other ids to \d+ tokens"):
        critics_of("foreign", **from_checkpoints)
    with pytest.raises(RecipeError, match=r"critic\.path .* is neither a directory"):
        critics_of("missing", **from_checkpoints)
    save_hf(CausalLM(ModelConfig(280, 16, 1, 2, 1, 8, 32)), tmp_path / "narrow")
    with pytest.raises(RecipeError, match="has 280 token ids, the policy 300"):
        critics_of("narrow")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"critic": {"count": 1}}, r"critic\.count to at least 2"),
        ({"critic": {"count": 0}}, r"critic\.count to at least 1"),
        ({"critic": {"source": "checkpoint"}}, r"critic\.path must name one"),
        ({"critic": {"heads": 3, "kv_heads": 2}}, r"critic\.heads=3 is no multiple"),
        ({"critic": {"head_dim": 7}}, r"critic\.head_dim=7 must be even"),
        ({"critic": {"mask_low": 1.5}}, r"critic\.mask_low"),
    ],
)
def test_a_recipe_s_contradictions_are_refused_before_anything_starts(asyppo, sections, words) -> None:
    with pytest.raises(RecipeError, match=words):
        asyppo(**sections)

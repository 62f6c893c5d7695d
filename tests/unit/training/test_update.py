"""A learner step: facts of a batch, advantages of every kind, the order in which the roles learn, replays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rock.domain.outcome import Completed, Outcome, Truncated
from roll_core.algorithms import ADVANTAGES
from roll_core.algorithms.advantages import gae, of_turns, on_tokens
from roll_core.config import Recipe, load_recipe
from roll_core.config.algorithm import Algorithm
from roll_core.errors import LearnerFailed, RecipeError
from roll_core.learners import LearnerConfig
from roll_core.learners.base import Estimate
from roll_core.learners.critics import CriticLearner, ValueModel
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig
from roll_core.training.batches import anchors, make_batch
from roll_core.training.credit_flow import advantages
from roll_core.training.roles import Roles
from roll_core.training.update import update
from roll_core.types import Generation, Group, TrainBatch, Trajectory, Turn

torch.set_num_threads(1)
TINY = ModelConfig(vocab=31, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=32, max_context=64)


def turn(observation: str, *tokens: int, reward: float = 0.0) -> Turn:
    generation = Generation(tokens, (-3.4,) * len(tokens), (0,) * len(tokens), "stop")
    return Turn((1, 2), generation, observation, "a", "a", reward=reward)


def episode(name: str, *turns: Turn, outcome: Outcome | None = None) -> Trajectory:
    total = sum(t.reward for t in turns)
    return Trajectory(name, "g", "e", "t", 0, 0, turns, outcome or Completed(total, total > 0))


def groups() -> list[Group]:
    """Two tasks; rooms are met again within a group; one episode is cut off, one has a reward on its way."""
    first = Group(
        "g0",
        "t0",
        (
            episode("a", turn("hall", 3, 4), turn("kitchen", 5, 6, 7, reward=1.0)),
            episode("b", turn("hall", 8), turn("cellar", 9, 10), turn("kitchen", 11, reward=0.5)),
            episode("c", turn("hall", 12, 13), turn("cellar", 14), outcome=Truncated("turns")),
            episode("d", turn("hall", 15, 16, reward=0.25), turn("hall", 17, reward=0.25)),
        ),
    )
    second = Group(
        "g1",
        "t1",
        (
            episode("e", turn("hall", 3, 18, reward=1.0)),
            episode("f", turn("hall", 3, 19), outcome=Truncated("turns")),
            episode("h", turn("hall", 20)),
            episode("i", turn("hall", 21, 22, 23, reward=1.0)),
        ),
    )
    return [first, second]


def recipe(**algorithm: Any) -> Recipe:
    critic = {f"critic.{k}={v}" for k, v in algorithm.pop("critic", {}).items()}
    named = [f"algorithm.{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in algorithm.items()]
    return load_recipe("alfworld-tiny", [*named, *critic, "algorithm.negative_weight=1.0"])


# --- facts -----------------------------------------------------------------------------------------------------------


def test_a_batch_knows_turns_their_rewards_and_what_was_cut_off() -> None:
    batch = make_batch(groups())
    assert batch.turn_BT is not None
    assert batch.rewards_BT is not None
    assert batch.truncated_B is not None
    assert batch.turn_BT[0].tolist()[:9] == [-1, -1, 0, 0, -1, -1, 1, 1, 1]
    assert batch.rewards_BT[0].nonzero().tolist() == [[8]]
    assert batch.rewards_BT[3].tolist()[:7] == [0, 0, 0, 0.25, 0, 0, 0.25]
    assert torch.equal(batch.rewards_BT.sum(1), batch.rewards_B)
    assert batch.truncated_B.tolist() == [False, False, True, False, False, True, False, False]
    assert (batch.advantages_BT == 0).all()


def test_rewards_beyond_those_of_the_turns_were_earned_at_the_end() -> None:
    late = episode("a", turn("x", 3, reward=0.5), turn("y", 4, 5), outcome=Completed(2.0, True))
    assert make_batch([Group("g", "t", (late,))]).rewards_BT.tolist() == [[0, 0, 0.5, 0, 0, 0, 1.5]]  # type: ignore[union-attr]


def test_the_reward_of_a_turn_without_tokens_is_not_lost() -> None:
    silent = turn("y", reward=0.5)
    for turns, at in (((turn("x", 3), silent), 2), ((silent, turn("x", 3)), 4)):
        batch = make_batch([Group("g", "t", (episode("a", *turns),))])
        assert batch.rewards_BT is not None
        assert batch.rewards_BT[0, at] == 0.5
        assert batch.rewards_BT.sum() == 0.5


# --- advantages ------------------------------------------------------------------------------------------------------


def estimate_of(values_BT: Tensor, final_B: Tensor) -> Estimate:
    return Estimate(torch.stack((values_BT - 0.1, values_BT + 0.1)), torch.stack((final_B + 0.2, final_B - 0.2)))


def given_values(batch: TrainBatch) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(batch.mask_BT.shape, generator=g) * batch.mask_BT, torch.rand(len(batch.mask_BT), generator=g)


def test_gae_bootstraps_where_a_limit_cut_off_and_nowhere_else() -> None:
    batch = make_batch(groups())
    values, final = given_values(batch)
    found = advantages(Algorithm(advantage="gae", lam=0.9), batch, groups(), estimate_of(values, final))
    assert batch.rewards_BT is not None
    plain, _ = gae(batch.rewards_BT, values, batch.mask_BT, 1.0, 0.9)
    cut = batch.truncated_B
    assert torch.allclose(found[~cut], plain[~cut], atol=1e-6)
    row, last = 2, 6  # "c": its last token is the 7th
    assert found[row, last].item() == pytest.approx((final[row] - values[row, last]).item(), abs=1e-6)


def test_gae_by_turn_is_gae_over_the_turns_first_values_shared_by_their_tokens() -> None:
    batch = make_batch(groups())
    values, final = given_values(batch)
    found = advantages(
        Algorithm(advantage="gae", gae_level="turn", gamma=0.9, lam=0.8), batch, groups(), estimate_of(values, final)
    )
    first, second = values[0, 2], values[0, 6]  # the states before turns 0 and 1 of "a", which ends with 1
    end = 1.0 - second
    assert torch.allclose(found[0, 6:9], end.expand(3), atol=1e-6)
    assert torch.allclose(found[0, 2:4], (0.9 * second - first + 0.9 * 0.8 * end).expand(2), atol=1e-6)
    cut = 0.9 * final[2] - values[2, 6]
    assert found[2, 6].item() == pytest.approx(cut.item(), abs=1e-6)
    assert (found * (1 - batch.mask_BT) == 0).all()


def test_gae_without_critics_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"critic\.count"):
        advantages(Algorithm(advantage="gae"), make_batch(groups()), groups(), None)


def test_gigpo_adds_what_was_made_of_the_same_state() -> None:
    batch = make_batch(groups())
    algorithm = Algorithm(advantage="gigpo", gigpo_std=False, gamma=0.5, gigpo_weight=2.0)
    found = advantages(algorithm, batch, groups(), None)
    episodes = ADVANTAGES["dr_grpo"](batch.rewards_B, batch.group_B)
    # Returns of the turns that began in the hall: a 0.5, b 0.125, c 0, d 0.375 and, in its second turn, 0.25.
    hall = torch.tensor([0.5, 0.125, 0.0, 0.375, 0.25])
    step = hall - hall.mean()
    assert found[0, 2].item() == pytest.approx((episodes[0] + 2 * step[0]).item(), abs=1e-6)
    assert found[3, 6].item() == pytest.approx((episodes[3] + 2 * step[4]).item(), abs=1e-6)
    kitchen = torch.tensor([1.0, 0.5])
    assert found[0, 8].item() == pytest.approx((episodes[0] + 2 * (kitchen[0] - kitchen.mean())).item(), abs=1e-6)


def test_states_are_compared_within_a_group_only() -> None:
    found = anchors(groups())
    assert len({found[0, 0].item(), found[1, 0].item(), found[3, 0].item(), found[3, 1].item()}) == 1
    assert found[0, 0] != found[4, 0]
    assert found[0, 1] == found[1, 2]
    assert found[4, 1] == -1


def test_gigpo_at_weight_zero_is_grpo() -> None:
    batch = make_batch(groups())
    grpo, gigpo = (
        advantages(Algorithm(advantage=name, gigpo_weight=0.0), batch, groups(), None) for name in ("grpo", "gigpo")
    )
    assert torch.equal(grpo, gigpo)


@pytest.mark.parametrize("how", ["batch", "task"])
def test_normalised_advantages_have_mean_zero_and_deviation_one(how: str) -> None:
    batch = make_batch(groups())
    found = advantages(Algorithm(advantage="dr_grpo", normalise=how), batch, groups(), None)
    for rows in [slice(None)] if how == "batch" else [slice(0, 4), slice(4, 8)]:
        inside = found[rows][batch.mask_BT[rows] > 0]
        assert inside.mean().item() == pytest.approx(0, abs=1e-5)
        assert inside.std().item() == pytest.approx(1, abs=1e-4)
    assert (found * (1 - batch.mask_BT) == 0).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 1000))
def test_turns_and_tokens_go_back_and_forth(lengths: list[int], seed: int) -> None:
    """What a turn has is on each of its tokens, and their first is the turn's again."""
    turn_BT = torch.tensor([[k for k, n in enumerate(lengths) for k in (-1, *[k] * n)]])
    x_BK = torch.rand(1, len(lengths), generator=torch.Generator().manual_seed(seed))
    back, mask = of_turns(on_tokens(x_BK, turn_BT), turn_BT, "first", turns=len(lengths))
    assert mask[0].tolist() == [float(n > 0) for n in lengths]
    assert torch.equal(back, x_BK * mask)
    sums, _ = of_turns(on_tokens(x_BK, turn_BT), turn_BT, "sum", turns=len(lengths))
    assert torch.allclose(sums, x_BK * torch.tensor(lengths))


# --- the step --------------------------------------------------------------------------------------------------------


def roles(of: Recipe, seed: int = 1, **config: Any) -> Roles:
    algorithm = of.algorithm
    settings = {"kl_coef": algorithm.kl_coef, "kl_in": algorithm.kl_in, "entropy_coef": algorithm.entropy_coef}
    learner = TorchLearner(CausalLM(TINY, seed=seed), LearnerConfig(**{"lr": 1e-2, **settings, **config}))
    critics = [ValueModel(CausalLM(TINY, seed=seed + 7 + m), seed=m) for m in range(of.critic.count)]
    return Roles(learner, CriticLearner(critics) if critics else None)


def flat(found: Roles) -> Tensor:
    return torch.cat([x.flatten() for x in found.weights().tensors.values()])


ASYPPO = {"advantage": "gae", "entropy_coef": 0.01, "credit": "[advantage_mask,entropy_filter]"}


def test_only_critics_learn_in_their_warm_up_and_the_version_rises_all_the_same() -> None:
    of = recipe(**ASYPPO, critic={"count": 2, "warmup_steps": 2})
    found = roles(of)
    before = flat(found)
    values = [found.critics.values(make_batch(groups()))]  # type: ignore[union-attr]
    for version in (1, 2):
        metrics = update(of, found, groups(), 0.0)
        assert metrics["learner/skipped_steps"] == 1
        assert found.version == found.weights().version == version
        assert torch.equal(flat(found), before)
        values.append(found.critics.values(make_batch(groups())))  # type: ignore[union-attr]
        assert not torch.equal(values[-1], values[-2])
    metrics = update(of, found, groups(), 0.0)
    assert found.version == 3
    assert not torch.equal(flat(found), before)
    assert metrics["critic/masked_share"] == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(
    ("algorithm", "critic"),
    [
        ({"advantage": "gigpo"}, {}),
        ({"advantage": "bnpo", "normalise": "task"}, {}),
        ({"advantage": "grpo", "kl_coef": 0.1, "kl_in": "reward", "kl_estimator": "k1"}, {}),
        ({**ASYPPO, "gae_level": "turn"}, {"count": 2, "warmup_steps": 1}),
        ({"advantage": "gae"}, {"count": 1, "warmup_steps": 0}),
    ],
    ids=["gigpo", "bnpo", "kl in the reward", "asyppo", "one critic"],
)
def test_a_step_is_a_function_of_its_arguments_also_after_a_resume(
    algorithm: dict[str, Any], critic: dict[str, Any], tmp_path: Path
) -> None:
    of = recipe(**algorithm, **({"critic": critic} if critic else {}))
    straight, resumed = roles(of), roles(of, seed=50)
    update(of, straight, groups(), 0.0)
    straight.save(tmp_path)
    resumed.load(tmp_path)
    if algorithm.get("kl_coef"):
        assert update(of, roles(of), groups(), 0.0)["learner/kl"] == pytest.approx(0, abs=1e-6)
    for progress in (0.3, 0.6):
        one, other = update(of, straight, groups(), progress), update(of, resumed, groups(), progress)
        timed = {name for name in one if name.endswith("_s")}
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
    assert torch.equal(flat(straight), flat(resumed))


@pytest.mark.parametrize("cut", [True, False])
def test_a_limit_that_is_part_of_the_task_ends_at_nothing(cut: bool) -> None:
    played = groups() if cut else [replace(g, members=g.members[:2]) for g in groups()[:1]]
    after = []
    for bootstrap in ("true", "false"):
        of = recipe(advantage="gae", critic={"count": 1, "warmup_steps": 0, "bootstrap": bootstrap})
        found = roles(of)
        update(of, found, played, 0.0)
        after.append(flat(found))
    assert torch.equal(*after) is not cut


def test_a_divergence_in_the_reward_is_charged_token_by_token() -> None:
    of = recipe(advantage="dr_grpo", kl_coef=0.5, kl_in="reward", kl_estimator="k2")
    found = roles(of)
    for _ in range(3):
        metrics = update(of, found, groups(), 0.0)
    assert metrics["learner/kl"] > 0
    with pytest.raises(LearnerFailed, match="no reference policy"):
        update(of, Roles(TorchLearner(CausalLM(TINY))), groups(), 0.0)


def test_scores_are_those_of_the_policy_and_of_the_one_it_began_with() -> None:
    learner = TorchLearner(CausalLM(TINY, seed=1), LearnerConfig(lr=1e-2, kl_coef=0.1))
    batch = make_batch(groups())
    before = learner.score(batch)
    assert before.reference_logprobs_BT is not None
    assert torch.equal(before.logprobs_BT, before.reference_logprobs_BT)
    assert torch.equal(before.logprobs_BT, learner.logprobs(batch.tokens_BT, batch.mask_BT))
    assert (before.entropy_BT[batch.mask_BT > 0] > 0).all()
    assert (before.entropy_BT[batch.mask_BT == 0] == 0).all()
    batch.advantages_BT = batch.mask_BT.clone()
    learner.train_step(batch)
    after = learner.score(batch)
    assert torch.equal(after.reference_logprobs_BT, before.logprobs_BT)  # type: ignore[arg-type]
    assert not torch.equal(after.logprobs_BT, before.logprobs_BT)


def test_tokens_without_entropy_weight_earn_no_bonus() -> None:
    after = []
    for weight in (None, 1.0, 0.0):
        learner = TorchLearner(CausalLM(TINY, seed=1), LearnerConfig(lr=1e-2, entropy_coef=0.5))
        batch = make_batch(groups())
        if weight is not None:
            batch.entropy_weight_BT = weight * batch.mask_BT
        learner.train_step(batch)
        after.append(flat(Roles(learner)))
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[2], flat(Roles(TorchLearner(CausalLM(TINY, seed=1)))))


def test_corrections_are_told_and_reject() -> None:
    batch = make_batch(groups())
    batch.advantages_BT = batch.mask_BT.clone()
    batch.behaviour_logprobs_BT = batch.behaviour_logprobs_BT.clone()
    batch.behaviour_logprobs_BT[0] = 12.0 * batch.mask_BT[0]  # the learner thinks the first row all but impossible
    config = LearnerConfig(lr=1e-2, loss="dapo", correction=("token_weight", "token_veto"))
    metrics = TorchLearner(CausalLM(TINY, seed=1), config).train_step(batch)
    assert metrics["learner/rejected"] == pytest.approx((batch.mask_BT[0].sum() / batch.mask_BT.sum()).item())
    assert 0 < metrics["learner/correction_weight"] < 2


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.advantage=gae"], "critic.count to at least 1"),
        (["algorithm.credit=[advantage_mask]", "critic.count=1"], "critic.count to at least 2"),
        (["algorithm.credit=[entropy_filter]", "critic.count=2"], "algorithm.entropy_coef is 0"),
        (["algorithm.credit=[rythm]"], "there is no credit transform 'rythm'; expected any of rhythm, advantage_mask"),
        (["algorithm.correction=[token_weight,sequence_weight]"], "choose one importance weight"),
        (["algorithm.correction=[token_wait]"], "algorithm.correction"),
        (["algorithm.correction_band=[1.1,1.2]"], "must hold 1"),
        (["rollout.group_size=1"], "relative to the group"),
        (["rollout.group_size=1", "algorithm.advantage=reinforce_pp"], "filter_zero_variance"),
        (["algorithm.advantage=bnpo", "algorithm.kl_in=reward", "algorithm.kl_coef=0.1"], "rewards from 0 to 1"),
    ],
)
def test_what_cannot_be_had_together_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words.replace("[", r"\[")):
        load_recipe("alfworld-tiny", overrides)


def test_groups_of_one_are_allowed_where_nothing_is_relative_to_the_group() -> None:
    of = load_recipe(
        "alfworld-tiny",
        [
            "rollout.group_size=1",
            "algorithm.advantage=reinforce_pp",
            "algorithm.filter_zero_variance=false",
            "algorithm.negative_weight=1.0",
        ],
    )
    won, lost = (replace(g, members=g.members[i : i + 1]) for i, g in enumerate(groups()))
    found = advantages(of.algorithm, make_batch([won, lost]), [won, lost], None)
    assert found[0].sum() > 0 > found[1].sum()

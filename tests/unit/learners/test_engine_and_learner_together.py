"""Engine and learner in one loop: they speak of the same policy after every update, and something is learnt."""

from __future__ import annotations

import asyncio

import torch

from roll_core.algorithms import ADVANTAGES, spread
from roll_core.engines import SamplingParams
from roll_core.engines.torch_engine import TorchEngine
from roll_core.learners import LearnerConfig
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig
from roll_core.types import Generation, TrainBatch

torch.set_num_threads(1)


def pack(prompts: list[list[int]], groups: list[int], results: list[Generation], rewards: list[float]) -> TrainBatch:
    """What the rollout makes of finished one-turn episodes, in its simplest form."""
    width = max(len(p) + len(r.token_ids) for p, r in zip(prompts, results, strict=True))
    shape = (len(prompts), width)
    tokens, versions = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
    mask, attention, behaviour = (torch.zeros(shape) for _ in range(3))
    for row, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        end = len(prompt) + len(result.token_ids)
        at = slice(len(prompt), end)
        tokens[row, :end] = torch.tensor(prompt + list(result.token_ids))
        attention[row, :end], mask[row, at] = 1, 1
        behaviour[row, at] = torch.tensor(result.logprobs)
        versions[row, at] = torch.tensor(result.versions)
    rewards_B, group_B = torch.tensor(rewards), torch.tensor(groups)
    advantages = spread(ADVANTAGES["grpo"](rewards_B, group_B), mask)
    return TrainBatch(tokens, mask, attention, behaviour, advantages, versions, rewards_B, group_B)


def test_grpo_learns_to_copy_from_nothing() -> None:
    """Two symbols, a separator, then the same two: a ninth right at first, nearly all after a hundred steps."""
    config = ModelConfig(
        vocab=10, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=128, max_context=16
    )
    model = CausalLM(config, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # at this width 0.02 is so small that the first steps only leave it
    learner = TorchLearner(model, LearnerConfig(lr=3e-3, betas=(0.9, 0.999), loss="grpo", entropy_coef=0.03))
    generator = torch.Generator().manual_seed(0)

    async def step(engine: TorchEngine, number: int) -> tuple[float, dict[str, float]]:
        tasks: list[list[int]] = torch.randint(1, 10, (16, 2), generator=generator).tolist()
        prompts = [[*task, 0] for task in tasks for _ in range(8)]
        jobs = [
            engine.generate(f"{number}-{i}", prompt, SamplingParams(max_tokens=2, seed=1000 * number + i))
            for i, prompt in enumerate(prompts)
        ]
        results = await asyncio.gather(*jobs)
        rewards = [
            sum(a == b for a, b in zip(prompt, result.token_ids, strict=False)) / 2
            for prompt, result in zip(prompts, results, strict=True)
        ]
        metrics = learner.train_step(pack(prompts, [i // 8 for i in range(128)], results, rewards))
        await engine.load_weights(learner.weights())
        return sum(rewards) / len(rewards), metrics

    async def main() -> None:
        engine = TorchEngine(config, learner.weights(), slots=128, prefill_tokens=1024)
        await engine.start()
        try:
            history = [await step(engine, number) for number in range(100)]
        finally:
            await engine.close()
        rewards = [reward for reward, _ in history]
        assert sum(rewards[:5]) / 5 < 0.25
        assert sum(rewards[-5:]) / 5 > 0.75, rewards[::10]
        # Every batch was sampled by the weights it trains: the two sides must agree on every token.
        assert max(metrics["learner/behaviour_gap_max"] for _, metrics in history) < 1e-4
        assert learner.version == engine.stats().version == 100

    asyncio.run(main())


def test_engine_and_learner_agree_after_every_update_in_flight() -> None:
    """Long generations run through three updates: each token's log-prob is the learner's of the version it names."""
    config = ModelConfig(
        vocab=60, hidden=32, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate=64, max_context=256
    )
    learner = TorchLearner(CausalLM(config, seed=0), LearnerConfig(lr=1e-2, loss="tis"))
    prompts: list[list[int]] = torch.randint(0, 60, (6, 9), generator=torch.Generator().manual_seed(1)).tolist()

    async def main() -> None:
        engine = TorchEngine(config, learner.weights(), slots=12)
        await engine.start()
        try:
            snapshots = {0: learner.weights()}
            teach = [await engine.generate(f"t{i}", p, SamplingParams(max_tokens=8)) for i, p in enumerate(prompts)]
            batch = pack(prompts, [0] * 6, teach, [0.0, 1.0, 0.3, 0.9, 0.2, 0.5])
            for version in (1, 2, 3):
                learner.train_step(batch)
                snapshots[version] = learner.weights()
            jobs = [
                asyncio.create_task(engine.generate(f"r{i}", p, SamplingParams(max_tokens=200, seed=i)))
                for i, p in enumerate(prompts)
            ]
            for version in (1, 2, 3):
                sampled = engine.stats().generated_tokens
                while engine.stats().generated_tokens < sampled + 60:  # noqa: ASYNC110 - the worker has no event to give
                    await asyncio.sleep(0)
                await engine.load_weights(snapshots[version])
            results = await asyncio.gather(*jobs)
        finally:
            await engine.close()
        long = pack(prompts, [0] * 6, results, [0.0] * 6)
        seen = long.versions_BT[long.mask_BT > 0].unique().tolist()
        for version in seen:
            model = CausalLM(config)
            model.load_state_dict(snapshots[version].tensors)
            ours = TorchLearner(model).logprobs(long.tokens_BT, long.mask_BT)
            gap = (ours - long.behaviour_logprobs_BT)[long.versions_BT == version].abs().max()
            assert gap < 1e-4, (version, seen)
        assert seen == [0, 1, 2, 3]

    asyncio.run(main())

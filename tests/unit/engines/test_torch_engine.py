"""The embedded engine: exact log-probs, sessions, aborts, updates in flight, and no request left hanging."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from roll_core.engines import SamplingParams
from roll_core.engines.torch_engine import TorchEngine
from roll_core.errors import EngineDead
from roll_core.models import CausalLM, ModelConfig, train_tokenizer
from roll_core.types import Generation, Weights

torch.set_num_threads(1)
QWEN3 = ModelConfig(vocab=300, hidden=32, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate=48, max_context=128)
QWEN2 = replace(QWEN3, qk_norm=False, qkv_bias=True, head_dim=8, tie=False)


def make_model(seed: int = 0, config: ModelConfig = QWEN3) -> CausalLM:
    model = CausalLM(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def weights_of(model: CausalLM, version: int = 0) -> Weights:
    return Weights(version, {n: p.detach().clone() for n, p in model.named_parameters()})


def prompt(size: int, seed: int = 0) -> list[int]:
    ids: list[int] = torch.randint(0, 300, (size,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def logprobs_under(model: CausalLM, ids: list[int], sampled: int, temperature: float = 1.0) -> Tensor:
    with torch.no_grad():
        table = (model(torch.tensor([ids]))[0] / temperature).log_softmax(-1)
    return table[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0][-sampled:]


def assert_exact(model: CausalLM, prompt_ids: list[int], got: Generation, temperature: float = 1.0) -> None:
    expected = logprobs_under(model, prompt_ids + list(got.token_ids), len(got.token_ids), temperature)
    assert (expected - torch.tensor(got.logprobs)).abs().max() < 1e-4


def with_engine(body: Callable[[TorchEngine], Awaitable[None]], engine: TorchEngine) -> None:
    async def main() -> None:
        await engine.start()
        try:
            await asyncio.wait_for(body(engine), 30)
        finally:
            await engine.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is the worker thread's; it has no event to give
            await asyncio.sleep(0)


@pytest.mark.parametrize("config", [QWEN3, replace(QWEN3, tie=False, kv_heads=4), QWEN2], ids=["qwen3", "mha", "qwen2"])
def test_log_probs_are_those_of_the_network_whatever_runs_beside(config: ModelConfig) -> None:
    model = make_model(config=config)

    async def body(engine: TorchEngine) -> None:
        prompts = [prompt(size, size) for size in (5, 70, 33, 1, 100, 12, 9, 40, 41, 3, 64, 65)]
        temperatures = [1.0, 0.7, 1.3] * 4
        jobs = [
            engine.generate(f"r{i}", p, SamplingParams(max_tokens=20 + i, temperature=t))
            for i, (p, t) in enumerate(zip(prompts, temperatures, strict=True))
        ]
        for i, got in enumerate(await asyncio.gather(*jobs)):
            assert len(got.token_ids) == len(got.logprobs) == len(got.versions) == min(20 + i, 128 - len(prompts[i]))
            assert (got.finish_reason, set(got.versions)) == ("length", {4})
            assert_exact(model, prompts[i], got, temperatures[i])

    with_engine(body, TorchEngine(config, weights_of(model, 4), slots=5, prefill_tokens=32))


def test_greedy_takes_the_most_probable_token_and_reports_temperature_one() -> None:
    model = make_model()

    async def body(engine: TorchEngine) -> None:
        got = await engine.generate("g", prompt(9), SamplingParams(max_tokens=15, temperature=0.0))
        assert_exact(model, prompt(9), got)
        ids = prompt(9)
        for token in got.token_ids:
            with torch.no_grad():
                assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
            ids.append(token)

    with_engine(body, TorchEngine(QWEN3, weights_of(model)))


def test_a_seeded_request_samples_the_same_tokens_in_any_company() -> None:
    weights = weights_of(make_model())

    async def body(engine: TorchEngine) -> None:
        params = SamplingParams(max_tokens=30, seed=11)
        alone = await engine.generate("alone", prompt(20), params)
        crowd = [engine.generate(f"c{i}", prompt(5 + 7 * i, i), SamplingParams(max_tokens=40)) for i in range(9)]
        among = await asyncio.gather(*crowd, engine.generate("among", prompt(20), params))
        assert among[-1].token_ids == alone.token_ids
        other = await engine.generate("other", prompt(20), replace(params, seed=12))
        assert other.token_ids != alone.token_ids

    with_engine(body, TorchEngine(QWEN3, weights, slots=6, prefill_tokens=16))


def test_a_session_computes_only_what_is_new() -> None:
    model = make_model()

    async def body(engine: TorchEngine) -> None:
        ids = prompt(40)
        first = await engine.generate("t1", ids, SamplingParams(max_tokens=8), session="ep")
        ids = ids + list(first.token_ids) + prompt(10, 1)
        before = engine.stats()
        second = await engine.generate("t2", ids, SamplingParams(max_tokens=8), session="ep")
        after = engine.stats()
        # The last sampled token was never fed back: it is computed with the new ones.
        assert after.prefilled_tokens - before.prefilled_tokens == 11
        assert after.cached_tokens - before.cached_tokens == 47
        assert_exact(model, ids, second)
        diverged = ids[:30] + prompt(12, 2)
        third = await engine.generate("t3", diverged, SamplingParams(max_tokens=8), session="ep")
        assert engine.stats().cached_tokens - after.cached_tokens == 30
        assert_exact(model, diverged, third)
        engine.release("ep")
        cached = engine.stats().cached_tokens
        await engine.generate("t4", diverged, SamplingParams(max_tokens=1), session="ep")
        assert engine.stats().cached_tokens == cached

    with_engine(body, TorchEngine(QWEN3, weights_of(model), slots=4, prefill_tokens=16))


def test_prompts_that_begin_alike_are_computed_once_and_stay_exact() -> None:
    model = make_model()
    trunk = prompt(40)
    forks = [trunk[:25] + prompt(10, seed) for seed in (1, 2)]
    prompts = [trunk, prompt(30, 3), trunk, *forks, trunk, trunk]

    async def body(engine: TorchEngine) -> None:
        jobs = [
            asyncio.create_task(engine.generate(f"{i}", ids, SamplingParams(max_tokens=12, seed=i)))
            for i, ids in enumerate(prompts)
        ]
        with engine._wake:  # the worker sees all of them at once
            await asyncio.sleep(0)
        found = await asyncio.gather(*jobs)
        for ids, got in zip(prompts, found, strict=True):
            assert_exact(model, ids, got)
        assert len({got.token_ids for got in found}) == len(found)
        # Three copies of the trunk but for their last tokens, and two of what the forks have in common with it.
        assert engine.stats().cached_tokens == 3 * 39 + 2 * 25
        assert engine.stats().prefilled_tokens == sum(map(len, prompts)) - engine.stats().cached_tokens

    # Less than a prompt a pass, so that they are shared piece by piece.
    with_engine(body, TorchEngine(QWEN3, weights_of(model), slots=8, prefill_tokens=16))


def test_more_sessions_than_slots_evict_the_oldest_and_stay_exact() -> None:
    model = make_model()

    async def episode(engine: TorchEngine, name: str, seed: int) -> None:
        ids = prompt(10 + seed, seed)
        for turn in range(4):
            got = await engine.generate(f"{name}-{turn}", ids, SamplingParams(max_tokens=5), session=name)
            assert_exact(model, ids, got)
            ids = ids + list(got.token_ids) + prompt(6, seed + turn)
        engine.release(name)

    async def body(engine: TorchEngine) -> None:
        await asyncio.gather(*(episode(engine, f"e{i}", i) for i in range(9)))

    with_engine(body, TorchEngine(QWEN3, weights_of(model), slots=3, prefill_tokens=24))


def test_new_weights_in_flight_keep_the_tokens_and_recompute_the_cache() -> None:
    models = [make_model(seed) for seed in range(4)]

    async def body(engine: TorchEngine) -> None:
        idle = await engine.generate("idle", prompt(30, 7), SamplingParams(max_tokens=5), session="s")
        jobs = [
            asyncio.create_task(engine.generate(f"r{i}", prompt(20 + i, i), SamplingParams(max_tokens=90)))
            for i in range(5)
        ]
        for version in (1, 2, 3):
            before = engine.stats().generated_tokens
            await until(lambda n=before: engine.stats().generated_tokens >= n + 40)  # type: ignore[misc]
            await engine.load_weights(weights_of(models[version], version))
            assert engine.stats().version == version
        for i, got in enumerate(await asyncio.gather(*jobs)):
            assert len(got.token_ids) == 90
            assert list(got.versions) == sorted(got.versions)
            assert len(set(got.versions)) >= 3
            ids = prompt(20 + i, i) + list(got.token_ids)
            for version in set(got.versions):
                ours = torch.tensor(got.versions) == version
                expected = logprobs_under(models[version], ids, 90)
                assert (expected - torch.tensor(got.logprobs))[ours].abs().max() < 1e-4
        cached = engine.stats().cached_tokens
        ids = prompt(30, 7) + list(idle.token_ids) + prompt(4)
        got = await engine.generate("again", ids, SamplingParams(max_tokens=5), session="s")
        assert engine.stats().cached_tokens == cached  # an idle session's cache is not believed either
        assert_exact(models[3], ids, got)

    with_engine(body, TorchEngine(QWEN3, weights_of(models[0]), slots=6, prefill_tokens=32))


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay() -> None:
    model = make_model()

    async def body(engine: TorchEngine) -> None:
        with pytest.raises(ValueError, match="do not fit"):
            await engine.load_weights(Weights(1, {}))
        got = await engine.generate("r", prompt(5), SamplingParams(max_tokens=5))
        assert set(got.versions) == {0}
        assert_exact(model, prompt(5), got)

    with_engine(body, TorchEngine(QWEN3, weights_of(model)))


def test_an_aborted_request_returns_what_it_had() -> None:
    model = make_model()

    async def body(engine: TorchEngine) -> None:
        running = asyncio.create_task(engine.generate("run", prompt(5), SamplingParams(max_tokens=120)))
        waiting = asyncio.create_task(engine.generate("wait", prompt(5), SamplingParams(max_tokens=120)))
        await until(lambda: engine.stats().generated_tokens >= 3)
        await engine.abort("wait")
        await engine.abort("run")
        await engine.abort("unknown")
        got = await running
        assert got.finish_reason == "abort"
        assert 3 <= len(got.token_ids) < 120
        assert_exact(model, prompt(5), got)
        assert await waiting == Generation((), (), (), "abort")
        assert engine.stats().running == engine.stats().waiting == 0

    with_engine(body, TorchEngine(QWEN3, weights_of(model), slots=1))


def test_a_cancelled_caller_frees_its_slot() -> None:
    async def body(engine: TorchEngine) -> None:
        job = asyncio.create_task(engine.generate("a", prompt(5), SamplingParams(max_tokens=120)))
        await until(lambda: engine.stats().running == 1)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert len((await engine.generate("a", prompt(5), SamplingParams(max_tokens=4))).token_ids) == 4

    with_engine(body, TorchEngine(QWEN3, weights_of(make_model()), slots=1))


def test_stop_tokens_and_stop_strings_end_a_generation_and_are_kept() -> None:
    tokenizer = train_tokenizer(["take the mug </action> go to fridge 1\n"] * 9, 300, ["<|end|>"])
    model = make_model(config=replace(QWEN3, vocab=tokenizer.vocab_size))

    async def body(engine: TorchEngine) -> None:
        everything = SamplingParams(max_tokens=100, seed=1)
        free = await engine.generate("free", [1], everything)
        stop_id = free.token_ids[20]
        at = free.token_ids.index(stop_id)
        got = await engine.generate("ids", [1], replace(everything, stop_token_ids=(stop_id,)))
        assert (got.token_ids, got.finish_reason) == (free.token_ids[: at + 1], "stop")
        text = tokenizer.decode(free.token_ids)
        stop = next(text[i : i + 3] for i in range(30, len(text)) if text[i : i + 3].isascii())
        got = await engine.generate("text", [1], replace(everything, stop=(stop,)))
        assert got.finish_reason == "stop"
        assert stop in tokenizer.decode(got.token_ids)
        assert stop not in tokenizer.decode(got.token_ids[:-1])
        assert got.token_ids == free.token_ids[: len(got.token_ids)]

    with_engine(body, TorchEngine(model.config, weights_of(model), tokenizer=tokenizer))


def test_impossible_requests_are_refused_at_once() -> None:
    async def body(engine: TorchEngine) -> None:
        one = SamplingParams(max_tokens=1)
        with pytest.raises(ValueError, match="no room"):
            await engine.generate("r", [1] * 128, one)
        with pytest.raises(ValueError, match="no room"):
            await engine.generate("r", [], one)
        with pytest.raises(ValueError, match="within 0"):
            await engine.generate("r", [300], one)
        with pytest.raises(ValueError, match="tokenizer"):
            await engine.generate("r", [1], replace(one, stop=("x",)))
        with pytest.raises(ValueError, match="top_p"):
            await engine.generate("r", [1], replace(one, top_p=0.0))
        assert len((await engine.generate("r", [1] * 127, replace(one, max_tokens=9))).token_ids) == 1

    with_engine(body, TorchEngine(QWEN3, weights_of(make_model())))


def test_an_engine_that_was_not_started_or_was_closed_says_so() -> None:
    async def main() -> None:
        engine = TorchEngine(QWEN3, weights_of(make_model()), slots=1)
        with pytest.raises(EngineDead, match="not started"):
            await engine.generate("r", [1], SamplingParams(max_tokens=1))
        await engine.start()
        jobs = [
            asyncio.create_task(engine.generate(f"r{i}", [1], SamplingParams(max_tokens=127), session="x"))
            for i in range(3)
        ]
        await until(lambda: engine.stats().running == 1)
        await engine.close()
        assert all(isinstance(r, EngineDead) for r in await asyncio.gather(*jobs, return_exceptions=True))
        for call in (engine.generate("z", [1], SamplingParams(max_tokens=1)), engine.load_weights(Weights(1, {}))):
            with pytest.raises(EngineDead, match="closed"):
                await call
        await engine.close()
        assert not [t for t in threading.enumerate() if t.name == "torch-engine"]

    asyncio.run(main())


def test_a_policy_gone_to_nan_kills_the_engine_loudly() -> None:
    async def body(engine: TorchEngine) -> None:
        jobs = [
            asyncio.create_task(engine.generate(f"r{i}", [1, 2], SamplingParams(max_tokens=100_000), session=f"s{i}"))
            for i in range(2)
        ]
        broken = weights_of(make_model(), 9)
        broken.tensors["model.norm.weight"].fill_(float("nan"))
        await engine.load_weights(broken)
        for result in await asyncio.gather(*jobs, return_exceptions=True):
            assert isinstance(result, EngineDead)
            assert "version 9" in str(result)
        with pytest.raises(EngineDead):
            await engine.generate("after", [1], SamplingParams(max_tokens=1))

    with_engine(body, TorchEngine(QWEN3, weights_of(make_model())))

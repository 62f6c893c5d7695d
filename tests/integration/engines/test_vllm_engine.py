"""vLLM behind our protocol: the learner's log-probs, version by version, and everything else an engine promises."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from roll_core.engines.base import SamplingParams
from roll_core.engines.renewal import Renewal
from roll_core.engines.router import Router
from roll_core.engines.vllm_engine import VllmEngine
from roll_core.errors import EngineDead
from roll_core.types import Generation, Weights

from .conftest import Run, cpu_engine
from .policies import LLAMA, QWEN3, TOKENIZER, gap, policy, weights

PROMPT = TOKENIZER.encode("go to fridge 1")
TOLERANCE = 0.005
"""Of a log-prob between vLLM's kernels and ours, in float32."""


def sample(engine: VllmEngine, run: Run, name: str, **how) -> Generation:
    params = SamplingParams(**({"max_tokens": 24, "seed": 1} | how))
    return run(engine.generate(name, PROMPT, params))


async def until_generated(engine: VllmEngine, tokens: int) -> None:
    """Wait until ``tokens`` more are sampled."""
    goal = engine.stats().generated_tokens + tokens
    while engine.stats().generated_tokens < goal:  # noqa: ASYNC110 - vLLM has no event to give
        await asyncio.sleep(0.001)


def test_log_probs_are_the_learners_after_every_update_and_were_not_before(engine: VllmEngine, run: Run) -> None:
    for version in (1, 2, 3):
        new = policy(QWEN3, version)
        before = sample(engine, run, f"before {version}", seed=version)
        assert gap(new, PROMPT, before, SamplingParams(1)) > 0.1, "the old weights cannot pass for the new ones"
        run(engine.load_weights(weights(QWEN3, version)))
        after = sample(engine, run, f"after {version}", seed=version)
        assert set(after.versions) == {version} == {engine.stats().version}
        assert gap(new, PROMPT, after, SamplingParams(1)) < TOLERANCE


@pytest.mark.parametrize(
    "how", [{"temperature": 0.6}, {"temperature": 1.4, "top_p": 0.5}, {"top_p": 0.8}, {"temperature": 0.0}], ids=str
)
def test_log_probs_are_those_of_what_was_sampled_from(engine: VllmEngine, run: Run, how: dict[str, float]) -> None:
    run(engine.load_weights(weights(QWEN3, 3)))
    params = SamplingParams(max_tokens=40, seed=5, **how)
    got = sample(engine, run, f"how {how}", max_tokens=40, seed=5, **how)
    assert gap(policy(QWEN3, 3), PROMPT, got, params) < TOLERANCE
    assert len(got.token_ids) == 40
    if how.get("temperature") != 0.0:
        assert gap(policy(QWEN3, 3), PROMPT, got, SamplingParams(1)) > 0.05, "plain log-probs would be others"


def test_a_stop_token_ends_a_generation_and_is_kept(engine: VllmEngine, run: Run) -> None:
    free = sample(engine, run, "free", seed=9)
    third = free.token_ids[2]
    got = sample(engine, run, "stopped", seed=9, stop_token_ids=(third,))
    assert got.finish_reason == "stop"
    assert got.token_ids == free.token_ids[: free.token_ids.index(third) + 1]


def test_a_stop_string_ends_a_generation_with_the_token_that_completed_it(engine: VllmEngine, run: Run) -> None:
    free = sample(engine, run, "free text", seed=11, max_tokens=60)
    stop = TOKENIZER.decode(free.token_ids[20:24]).strip("\ufffd ")[-3:]
    got = sample(engine, run, "stopped text", seed=11, max_tokens=60, stop=(stop,))
    assert got.finish_reason == "stop"
    assert got.token_ids == free.token_ids[: len(got.token_ids)]
    assert stop in TOKENIZER.decode(got.token_ids)
    assert stop not in TOKENIZER.decode(got.token_ids[:-1])


def test_what_is_sampled_depends_on_the_seed_and_not_on_the_neighbours(engine: VllmEngine, run: Run) -> None:
    alone = sample(engine, run, "alone", seed=21)

    async def beside() -> list[Generation]:
        jobs = (engine.generate(f"n{i}", PROMPT, SamplingParams(24, seed=21 + i)) for i in range(6))
        return list(await asyncio.gather(*jobs))

    together = run(beside())
    assert together[0].token_ids == alone.token_ids
    assert len({g.token_ids for g in together}) == 6
    moved = sample(engine, run, "moved", seed=21, sampled=3)
    assert moved.token_ids != alone.token_ids, "who comes with tokens must not draw the noise of its first ones again"


def test_an_aborted_request_returns_what_it_had(engine: VllmEngine, run: Run) -> None:
    async def main() -> Generation:
        job = asyncio.create_task(engine.generate("long", PROMPT, SamplingParams(480, seed=1)))
        await until_generated(engine, 20)
        await engine.abort("long")
        await engine.abort("nobody")
        return await job

    got = run(main())
    assert got.finish_reason == "abort"
    assert 0 < len(got.token_ids) < 480
    assert len(got.token_ids) == len(got.logprobs) == len(got.versions)
    assert engine.stats().running == engine.stats().waiting == 0


def test_a_request_in_flight_keeps_its_tokens_and_goes_on_under_each_new_version(engine: VllmEngine, run: Run) -> None:
    async def main() -> list[Generation]:
        await engine.load_weights(weights(QWEN3, 3))
        jobs = [
            asyncio.create_task(engine.generate(f"flight {i}", PROMPT, SamplingParams(450, seed=i))) for i in range(3)
        ]
        for version in (4, 5):
            await until_generated(engine, 120)
            await engine.load_weights(weights(QWEN3, version))
        return list(await asyncio.gather(*jobs))

    for got in run(main()):
        assert sorted(set(got.versions)) == [3, 4, 5]
        assert list(got.versions) == sorted(got.versions)
        for version in (3, 4, 5):
            under = policy(QWEN3, version)
            begin, end = got.versions.index(version), 450 - got.versions[::-1].index(version)
            part = Generation(got.token_ids[begin:end], got.logprobs[begin:end], (), "length")
            assert gap(under, PROMPT + list(got.token_ids[:begin]), part, SamplingParams(1)) < TOLERANCE


def test_a_session_reads_its_earlier_turns_from_the_cache_but_not_under_new_weights(
    engine: VllmEngine, run: Run
) -> None:
    async def turn(name: str, prompt: list[int]) -> tuple[Generation, int]:
        before = engine.stats().cached_tokens
        got = await engine.generate(name, prompt, SamplingParams(8, seed=2), session="s")
        return got, engine.stats().cached_tokens - before

    run(engine.load_weights(weights(QWEN3, 6)))
    long = [i % QWEN3.vocab for i in range(300)]
    first, cached = run(turn("turn 0", long))
    assert cached == 0
    longer = [*long, *first.token_ids, *PROMPT]
    second, cached = run(turn("turn 1", longer))
    assert cached >= 256
    assert gap(policy(QWEN3, 6), longer, second, SamplingParams(1)) < TOLERANCE
    run(engine.load_weights(weights(QWEN3, 7)))
    third, cached = run(turn("turn 2", longer))
    assert cached == 0
    assert gap(policy(QWEN3, 7), longer, third, SamplingParams(1)) < TOLERANCE
    engine.release("s")


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(engine: VllmEngine, run: Run) -> None:
    version = engine.stats().version
    torn = weights(QWEN3, 99)
    del torn.tensors["model.norm.weight"]
    with pytest.raises(ValueError, match=r"model\.norm\.weight is missing"):
        run(engine.load_weights(torn))
    assert set(sample(engine, run, "still there").versions) == {version}


def test_requests_that_make_no_sense_are_refused(engine: VllmEngine, run: Run) -> None:
    def ask(prompt: list[int], params: SamplingParams) -> None:
        run(engine.generate("bad", prompt, params))

    with pytest.raises(ValueError, match="leaves no room"):
        ask([1] * 512, SamplingParams(1))
    with pytest.raises(ValueError, match="within 0"):
        ask([QWEN3.vocab], SamplingParams(1))
    with pytest.raises(ValueError, match="no colder"):
        ask(PROMPT, SamplingParams(1, temperature=0.001))
    assert len(run(engine.generate("rest", [1] * 510, SamplingParams(40))).token_ids) == 2


def test_an_untied_head_and_llama_3s_rotary_embedding_are_updated_too(run: Run) -> None:
    async def main() -> list[Generation]:
        engine = cpu_engine(LLAMA, tokenizer=None, slots=2)
        await engine.start()
        try:
            long = [i % LLAMA.vocab for i in range(200)]
            got = [await engine.generate("a", long, SamplingParams(16, seed=1))]
            await engine.load_weights(weights(LLAMA, 1))
            got.append(await engine.generate("b", long, SamplingParams(16, seed=1)))
            with pytest.raises(ValueError, match="tokenizer"):
                await engine.generate("c", long, SamplingParams(16, stop=("x",)))
            return got
        finally:
            await engine.close()

    long = [i % LLAMA.vocab for i in range(200)]
    for version, got in enumerate(run(main())):
        assert gap(policy(LLAMA, version), long, got, SamplingParams(1)) < TOLERANCE
        assert gap(policy(LLAMA, 1 - version), long, got, SamplingParams(1)) > 0.1


def test_a_dead_engine_tells_all_who_wait_and_is_replaced_with_the_newest_weights() -> None:
    """Last, for its engines are its own."""

    async def main() -> tuple[Generation, Generation, Router]:
        def make(index: int, newest: Weights) -> VllmEngine:
            return VllmEngine(QWEN3, newest, device="cpu", dtype=torch.float32, threads=1, slots=4)

        first = make(0, weights(QWEN3, 0))
        router = Router([first], renewal=Renewal(make, weights(QWEN3, 0), restarts=1))
        await router.start()
        try:
            await router.load_weights(weights(QWEN3, 1))
            job = asyncio.create_task(router.generate("x", PROMPT, SamplingParams(400, seed=1)))
            await until_generated(first, 30)
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # one that has ended, of another test's
                    if "EngineCore" in " ".join(process.cmdline()) + process.name():
                        process.kill()
            got = await job
            with pytest.raises(EngineDead, match="ended"):
                await first.generate("y", PROMPT, SamplingParams(1))
            return got, await router.generate("z", PROMPT, SamplingParams(8, seed=2)), router
        finally:
            await router.close()

    got, next_one, router = asyncio.run(main())
    assert router.stats().restarts == 1
    for generation in (got, next_one):
        assert set(generation.versions) == {1}
        assert gap(policy(QWEN3, 1), PROMPT, generation, SamplingParams(1)) < TOLERANCE


HOLDER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from engines.conftest import cpu_engine
from engines.policies import QWEN3

async def main():
    engine = cpu_engine(QWEN3)
    await engine.start()
    print("started", engine._folder, flush=True)
    await asyncio.sleep(3600)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_nothing_of_an_engine_outlives_a_killed_trainer(tmp_path: Path) -> None:
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    words = [sys.executable, str(script), str(Path(__file__).parents[1])]
    (scratch := tmp_path / "t").mkdir()
    env = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as trainer:
        assert trainer.stdout is not None
        line = next(line for line in trainer.stdout if line.startswith("started"))
        folder = Path(line.split()[1])
        assert folder.is_dir()
        children = psutil.Process(trainer.pid).children(recursive=True)
        assert len(children) >= 2
        trainer.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not folder.exists()
    assert not [path for path in scratch.rglob("*") if path.is_socket()]

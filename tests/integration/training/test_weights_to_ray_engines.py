"""New weights reach engines that are actors on Ray by every transport; what arrives damaged, or as changes to a version
that is not held, is named and sent whole; who dies is no member any more."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from pathlib import Path

import pytest

from roll_core.cluster.ray_engine import RayEngine
from roll_core.engines.base import Engine, SamplingParams
from roll_core.engines.router import Router
from roll_core.engines.torch_engine import TorchEngine
from roll_core.models import CausalLM, train_tokenizer
from roll_core.training import assembly
from roll_core.types import Generation, Weights
from roll_core.weights import publishing
from roll_core.weights.broadcast import DEADLINE_S, Call
from roll_core.weights.channels import File, Stored
from tests.integration.cluster.test_ray_nodes import Cluster

from .test_run_on_ray import cluster

__all__ = ["cluster"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'rock-roll[ray]')"
    ),
]
WORDS = train_tokenizer(["red green blue open the door"], 300)
TICKETS = {"auto": File, "shared_memory": File, "file": File, "object_store": Stored, "broadcast": Call}


def versions(model: CausalLM, count: int) -> list[Weights]:
    """The first is the model's own; in each, one row of the embedding differs from the one before."""
    made = [Weights(0, {n: p.detach().clone() for n, p in model.named_parameters()})]
    for version in range(1, count):
        tensors = dict(made[-1].tensors)
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.embed_tokens.weight"][10 + version] += 0.5
        made.append(Weights(version, tensors))
    return made


async def told(engine: Engine, name: str) -> Generation:
    return await engine.generate(name, list(range(5, 20)), SamplingParams(max_tokens=4, temperature=0.0))


@pytest.mark.parametrize("transport", ["auto", "file", "object_store", "broadcast"])
def test_every_engine_has_every_version_whatever_happens_on_the_way(
    make_recipe, cluster: Cluster, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    folder = str(tmp_path / "shared") if transport == "file" else ""
    recipe = make_recipe(
        placement={"ray": cluster.address, "learner": "here"},
        weights={"transport": transport, "folder": folder, "delta": True},
        engine={"count": 2, "slots": 4},
    )
    model = assembly.make_model(recipe, WORDS)
    sent = versions(model, 7)
    damage, original = [], publishing.pack

    def damaged(*args, **named):
        packet = original(*args, **named)
        if damage:
            packet[-1] ^= damage.pop()
        return packet

    monkeypatch.setattr(publishing, "pack", damaged)

    async def main() -> None:
        ray_cluster = await asyncio.to_thread(assembly.make_cluster, recipe, model.config)
        assert ray_cluster is not None
        router = assembly.make_engine(recipe, model.config, sent[0], WORDS, ray_cluster)
        local = TorchEngine(model.config, sent[0], tokenizer=WORDS, slots=4, max_context=96, threads=1)
        assert isinstance(router, Router)
        engines = [place.engine for place in router._places]

        async def all_have(version: int) -> None:
            await local.load_weights(sent[version])
            expected = await told(local, f"local {version}")
            for i, place in enumerate(router._places):
                found = await told(place.engine, f"{i} {version}")
                assert found.versions == (version,) * 4
                assert found.token_ids == expected.token_ids
                assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)

        async def published(version: int) -> dict[str, float]:
            await router.load_weights(sent[version])
            await all_have(version)
            return router.weight_metrics()

        try:
            await router.start()
            await local.start()
            assert all(isinstance(engine, RayEngine) for engine in engines)
            first = await published(1)
            distribution = engines[0]._distribution
            assert isinstance(distribution._publisher.last.ticket, TICKETS[transport])
            assert distribution.transport == ("shared_memory" if transport == "auto" else transport)
            assert first["weights/sent_share"] < 0.2, "changes to the version that they began with"
            assert first["weights/resent"] == 0
            assert first["weights/receive_s"] > 0
            assert router.publish_s >= first["weights/receive_s"]

            damage.append(255)
            assert (await published(2))["weights/resent"] == 2
            assert "of version 2 is not what was sent: its checksum is" in caplog.text

            resent = 2
            if transport != "broadcast":  # which waits for all that hold the version before
                await engines[1].load_weights(sent[3])  # the other one is left behind
                resent += 1
                assert (await published(4))["weights/resent"] == resent
                assert "version 4 came as changes to version 3, and version 2 is held here" in caplog.text

            ray_cluster.ray.kill(engines[0]._actor)
            await router.load_weights(sent[5])
            assert router.publish_s < DEADLINE_S / 2, "who is dead is not waited for"
            resent += transport == "broadcast"  # the other one had waited for it
            if (coming := router._places[0].coming) is not None:
                await coming
            await all_have(5)
            assert (await published(6))["weights/resent"] == resent
        finally:
            await router.close()
            await local.close()
            await asyncio.to_thread(ray_cluster.close)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert not folder or not list(Path(folder).iterdir())

"""Tasks that are said to come soon: their images are asked of the nodes, through the API; others have none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.fake import FakeRuntime

ENVS = Path(__file__).parents[2] / "fixtures" / "envs"


def test_nodes_are_asked_for_the_images_of_the_tasks(on_fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCK_ENV_PATH", str(ENVS))
    catalog = EnvCatalog(on_fake.home)
    bundle = build_environment(catalog, "counter", quick=True, image=False)
    own = {"to-20": ["acme/one:1"], "to-21": ["acme/two:1"]}
    (bundle.directory / "images.json").write_text(json.dumps(own))
    wanted = []
    for task in own:
        spec = catalog.task_spec("counter", task)
        assert spec is not None
        wanted.append(spec.image)
    seen: list[str] = []

    async def ensure_image(self: FakeRuntime, image: str) -> str:
        seen.append(image)
        return ""

    monkeypatch.setattr(FakeRuntime, "ensure_image", ensure_image)

    async def main() -> None:
        async with on_fake.platform() as (_, http):
            answer = await http.post("/envs/counter/prefetch", json={"tasks": ["to-20", "to-3", "to-21"]})
            assert (answer.status_code, answer.json()) == (202, {"images": 2})

            async def fetched() -> bool:
                return len(seen) == 2

            await on_fake.until(fetched)
            assert seen == wanted
            none = await http.post("/envs/counter/prefetch", json={"tasks": ["to-3"]})
            assert none.json() == {"images": 0}
            assert (await http.post("/envs/nobody/prefetch", json={"tasks": []})).status_code == 404

    asyncio.run(main())

"""Tasks that are said to come soon: their images are asked of the nodes, through the API; others have none."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rock.runtimes.fake import FakeRuntime
from rock.sdk import NotFound


def test_nodes_are_asked_for_the_images_of_the_tasks(on_fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = on_fake.built("counter", image=False)
    bundle = catalog.require_built("counter")
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
        async with on_fake.served(catalog) as rock:
            assert await rock.prefetch("counter", ["to-20", "to-3", "to-21"]) == 2

            async def fetched() -> bool:
                return len(seen) == 2

            await on_fake.until(fetched)
            assert seen == wanted
            assert await rock.prefetch("counter", ["to-3"]) == 0
            with pytest.raises(NotFound):
                await rock.prefetch("nobody", [])

    asyncio.run(main())

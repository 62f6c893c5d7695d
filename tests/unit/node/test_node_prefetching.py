"""Images that a node is told of ahead: one at a time, none twice, and what fails keeps nobody from the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rock.domain.errors import ImageBuildFailed
from rock.node import prefetching
from rock.runtimes.fake import FakeRuntime

Make = Callable[..., Any]


class Registry(FakeRuntime):
    """An image is there when the test lets it be."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.under_way = self.most = 0
        self.open = asyncio.Semaphore(0)

    async def ensure_image(self, image: str) -> str:
        self.asked.append(image)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.open.acquire()
        finally:
            self.under_way -= 1
        if image == "bad":
            raise ImageBuildFailed("it is nowhere")
        return ""


def test_they_come_one_at_a_time_and_a_failure_is_passed_over(world: Make) -> None:
    async def main() -> None:
        registry = Registry()
        async with world(runtime=registry) as w:
            await w.node.prefetch(["one", "bad", "two"])
            await w.until(lambda: registry.asked == ["one"])
            await w.node.prefetch(["one", "two", "three"])
            for _ in range(4):
                registry.open.release()
            await w.until(lambda: len(registry.asked) == 4 and not registry.under_way)
            assert registry.asked == ["one", "bad", "two", "three"]
            assert registry.most == 1
            await w.node.prefetch(["one"])  # it may have been removed since
            await w.until(lambda: registry.asked[4:] == ["one"])
        assert registry.under_way == 0, "the end of the node ends the waiting"
        await registry.destroy()

    asyncio.run(main())


def test_of_too_many_the_newest_are_kept(world: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(prefetching, "MOST", 2)

    async def main() -> None:
        registry = Registry()
        async with world(runtime=registry) as w:
            await w.node.prefetch(["a", "b", "c", "d"])
            registry.open.release()
            registry.open.release()
            await w.until(lambda: registry.asked == ["c", "d"])
        await registry.destroy()

    asyncio.run(main())

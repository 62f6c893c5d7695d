"""What is said where there is nothing that a snapshot could keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rock.domain.errors import InvalidRequest
from rock.wire.models import SandboxSpec


@pytest.mark.parametrize(("env", "word", "not_"), [("", "--writable", "env.toml"), ("toy", "env.toml", "--writable")])
def test_the_hint_is_for_whoever_made_the_sandbox(world: Callable[..., Any], env: str, word: str, not_: str) -> None:
    async def main() -> None:
        async with world() as w:
            await w.claim(SandboxSpec(image="any", env=env, entry="toy:Env" if env else ""))
            with pytest.raises(InvalidRequest) as refused:
                await w.node.snapshot("ls-1", epoch=1, name="rock-snapshot:x")
            assert word in refused.value.hint
            assert not_ not in refused.value.hint

    asyncio.run(main())

"""The platform on a real Docker engine, under an instance of its own; nothing of it is left afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rock.cluster.settings import instance_of
from rock.runtimes.docker import DockerRuntime


@pytest.fixture(scope="session")
def docker_base() -> str:
    from rock.runtimes.images import ensure_base_image

    return ensure_base_image()


@pytest.fixture
def docker_home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="rk"))
    home.chmod(0o711)
    yield home

    async def sweep() -> None:
        runtime = DockerRuntime(instance_of(home))
        for left in await runtime.list_owned():
            await runtime.stop(left.handle)
        await runtime.close()

    asyncio.run(sweep())
    shutil.rmtree(home, ignore_errors=True)
    assert not os.path.exists(home)

"""The Docker engine asked behind the platform's back, as a person or a fault would."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from rock.cluster.settings import instance_of
from rock.sdk import EnvSession


async def docker(*argv: str) -> str:
    done = await asyncio.to_thread(subprocess.run, ["docker", *argv], capture_output=True, text=True, check=True)
    return str(done.stdout)


async def remove(env: EnvSession) -> None:
    await docker("rm", "-f", f"rock-{env.sandbox_id}")


async def left_of(home: Path) -> str:
    """The ids of all containers of this home's platform, running or not."""
    return await docker("ps", "-aq", "--filter", f"label=rock.instance={instance_of(home)}")

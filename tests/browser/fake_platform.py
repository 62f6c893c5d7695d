"""A real platform on the fake runtime, in a process of its own, for the browser tests to break.

Prints its address once it serves. Reads commands from standard input: ``kill SANDBOX`` lets a sandbox die as if killed
for memory. Ends with its standard input, or with a signal.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rock.api.app import create_app
from rock.api.server import serve
from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings
from rock.runtimes.fake import FakeRuntime


async def obey(runtime: FakeRuntime, platform: Platform) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        _, _, sandbox_id = line.strip().partition(" ")
        await runtime.kill(sandbox_id, oom=True)
    platform.control.request_shutdown()


async def main(home: Path, port: int) -> None:
    runtime = FakeRuntime("browsertest")
    platform = await Platform.open(PlatformSettings(home=home, runtime="fake", capacity=16), runtime=runtime)
    obeying = asyncio.create_task(obey(runtime, platform))
    try:
        await serve(create_app(platform.control, key=""), port=port, on_ready=lambda url: print(url, flush=True))
    finally:
        obeying.cancel()
        await platform.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))

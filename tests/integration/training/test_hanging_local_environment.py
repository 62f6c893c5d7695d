"""A local environment that hangs does not keep the trainer's process from ending."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
from roll_core.rollout.sessions import LocalSessions

async def main() -> None:
    sessions = LocalSessions("hanging:Env", tasks={"train": ["t"]}, workers=int(sys.argv[1]))
    async with sessions.open("t", 0) as session:
        await session.reset()
        try:
            async with asyncio.timeout(0.2):
                await session.step("x")
        except TimeoutError:
            print("timed out")
    await sessions.close()

if __name__ == "__main__":
    asyncio.run(main())
    print("over")
"""
ENV = """
import threading

class Env:
    def reset(self, task, seed, options):
        return "", {}

    def step(self, action):
        threading.Event().wait()

    def close(self):
        pass
"""


@pytest.mark.parametrize("workers", [0, 1], ids=["thread", "process"])
def test_the_process_ends(tmp_path, workers: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "hanging.py").write_text(ENV)
    argv = [sys.executable, str(tmp_path / "program.py"), str(workers)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["timed out", "over", ""]), done.stderr

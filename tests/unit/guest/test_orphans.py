"""A guest that nobody is connected to any more ends itself; one that somebody holds on to does not."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path
from typing import Any

import psutil

from rock.guest.loop import Loop
from rock.guest.orphan import DeadMansSwitch
from rock.wire.guest_client import GuestClient


def test_it_ends_with_all_its_children_when_the_last_connection_is_gone(start_guest: Any, guest_dir: Path) -> None:
    guest = start_guest(guest_dir, "--entry", "toy:Toy", "--python-path", str(guest_dir), "--orphan-after", "1")

    async def main() -> list[psutil.Process]:
        async with await GuestClient.connect_unix(guest.socket) as client:
            await client.call("env.reset", seq=0, task="t", seed=0)
            await client.call("env.step", seq=1, action="child 1000")
            return psutil.Process(guest.process.pid).children(recursive=True)

    started = asyncio.run(main())
    assert len(started) >= 2
    assert guest.process.wait(30.0) == 0
    psutil.wait_procs(started, timeout=10.0)
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_it_ends_when_nobody_ever_came(start_guest: Any, guest_dir: Path) -> None:
    assert start_guest(guest_dir, "--orphan-after", "0.2").process.wait(30.0) == 0


def test_a_connection_that_says_nothing_keeps_it(start_guest: Any, guest_dir: Path) -> None:
    guest = start_guest(guest_dir, "--orphan-after", "2")

    async def main() -> None:
        async with await GuestClient.connect_unix(guest.socket) as client:
            began = (await client.call("ping"))["t"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(guest.process.wait, 4.0)
            assert (await client.call("ping"))["t"] - began > 2.0

    asyncio.run(main())


def test_the_switch_counts_from_the_last_to_leave() -> None:
    loop, ended = Loop(own_signals=False), []
    switch = DeadMansSwitch(loop, 0.05, lambda: (ended.append(True), loop.stop()))
    switch.connected()
    switch.connected()
    switch.disconnected()
    loop.call_later(0.2, switch.disconnected)
    loop.call_later(0.15, lambda: ended.append(False))
    loop.run()
    loop.close()
    assert ended == [False, True]

"""Starting one sandbox: from the runtime's start call to a guest that answers and has its environment loaded."""

from __future__ import annotations

import asyncio
import time

from rock.domain.errors import DeadlineExceeded, RockError, SandboxLost
from rock.node.record import Pool, Record
from rock.runtimes.base import Runtime
from rock.runtimes.shared import seal
from rock.wire.guest_client import GuestClient

# The guest makes its socket some 20 ms after the runtime's start call returns; looking costs microseconds.
_LOOK_EVERY_S = 0.003
# How often to ask the runtime whether it has died meanwhile: an inspection costs tens of milliseconds in Docker.
_INSPECT_EVERY_S = 1.0
_HELLO_TIMEOUT_S = 5.0


class DiedStarting(SandboxLost):
    """It ended before its guest answered; the evidence is with the runtime."""


async def start(
    runtime: Runtime, pool: Pool, record: Record, timeout_s: float, launches: set[asyncio.Task[str]]
) -> GuestClient:
    """Start ``record`` and return a connection to its guest.

    ``launches`` holds the runtime's start call until it has ended, even when this gives up earlier: a runtime cannot be
    interrupted half-way, and what it still makes must be waited for before everything is removed.

    Raises: ImageNotFound, RuntimeUnavailable, InvalidRequest (the runtime's), DiedStarting, DeadlineExceeded.
    """
    if pool.image_version is None:
        pool.image_version = await runtime.ensure_image(record.spec.image)
    record.image_version = pool.image_version
    await asyncio.to_thread(record.shared_dir.mkdir, parents=True, exist_ok=True)
    try:
        async with asyncio.timeout(timeout_s):
            launch = asyncio.ensure_future(runtime.start(record.id, record.spec, record.shared_dir))
            launches.add(launch)
            launch.add_done_callback(lambda done: _ended(done, launches))
            record.handle = await asyncio.shield(launch)
            return await _meet(runtime, record)
    except TimeoutError as error:
        raise _too_late(record, timeout_s) from error


async def resume(runtime: Runtime, record: Record, timeout_s: float) -> GuestClient:
    """The rest of the way for one that an earlier process has started, however far it came."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _meet(runtime, record)
    except TimeoutError as error:
        raise _too_late(record, timeout_s) from error


async def _meet(runtime: Runtime, record: Record) -> GuestClient:
    client = await _first_connection(runtime, record)
    try:
        await asyncio.to_thread(seal, record.shared_dir)
        await _until_loaded(client, record)
    except (RockError, OSError, asyncio.CancelledError):
        await client.close()
        raise
    return client


def _too_late(record: Record, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"sandbox {record.id} of image {record.spec.image!r} did not answer within {timeout_s:g} s of its start"
    )


def _ended(launch: asyncio.Task[str], launches: set[asyncio.Task[str]]) -> None:
    launches.discard(launch)
    if not launch.cancelled():
        launch.exception()  # looked at, so that nobody is told of one that came too late for anyone to care


async def connect(socket_path: str) -> GuestClient | None:
    """None while nobody listens there."""
    try:
        return await GuestClient.connect_unix(socket_path)
    except SandboxLost:
        return None


async def _first_connection(runtime: Runtime, record: Record) -> GuestClient:
    inspect_at = time.monotonic() + _INSPECT_EVERY_S
    while True:
        if record.shared_dir.joinpath("guest.sock").exists() and (client := await connect(record.socket_path)):
            return client
        if time.monotonic() >= inspect_at:
            await _check_alive(runtime, record)
            inspect_at = time.monotonic() + _INSPECT_EVERY_S
        await asyncio.sleep(_LOOK_EVERY_S)


async def _until_loaded(client: GuestClient, record: Record) -> None:
    """A sandbox is ready when its environment is, so that a claim from the warm pool never waits for an import."""
    pause_s = _LOOK_EVERY_S
    while True:
        hello = await client.call("hello", timeout_s=_HELLO_TIMEOUT_S)
        env = hello.get("env", "none")
        if env == "dead":
            raise DiedStarting(f"the environment {record.spec.env!r} of sandbox {record.id} ended while it was loaded")
        if env != "loading":
            return
        await asyncio.sleep(pause_s)
        pause_s = min(0.2, pause_s * 1.5)


async def _check_alive(runtime: Runtime, record: Record) -> None:
    observed = await runtime.inspect(record.handle)
    if observed is None or not observed.running:
        raise DiedStarting(f"sandbox {record.id} ended before its guest answered")

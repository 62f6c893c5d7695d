"""The port inside a sandbox that leads to its node's proxy."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from rock.wire.guest_client import GuestClient


def _proxy(path: Path) -> socket.socket:
    """Answers each connection with what it said, in capitals, and then its end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with near:
                said = b""
                while data := near.recv(1 << 16):
                    said += data
                near.sendall(said.upper())

    threading.Thread(target=serve, daemon=True).start()
    return listener


_CLIENT = """
import os, socket
host, _, port = os.environ["HTTP_PROXY"].removeprefix("http://").rpartition(":")
with socket.create_connection((host, int(port))) as near:
    near.sendall(b"hello " * 50000)
    near.shutdown(socket.SHUT_WR)
    said = b""
    while data := near.recv(1 << 16):
        said += data
print(host, len(said), said[:6].decode(), os.environ["no_proxy"], os.environ["https_proxy"] == os.environ["HTTP_PROXY"])
"""


def test_programs_find_the_port_and_it_leads_to_the_proxy(guest_dir: Path, start_guest: Callable[..., object]) -> None:
    listener = _proxy(guest_dir / "proxy.sock")
    guest = start_guest(guest_dir, "--egress", str(guest_dir / "proxy.sock"))

    async def main() -> None:
        async with await GuestClient.connect_unix(guest.socket) as client:  # type: ignore[attr-defined]
            for _ in range(2):
                done = await client.call("exec", argv=["python3", "-c", _CLIENT])
                assert done["stdout"] == "127.0.0.1 300000 HELLO  localhost,127.0.0.1,::1 True\n", done
            listener.close()
            (guest_dir / "proxy.sock").unlink()
            done = await client.call("exec", argv=["python3", "-c", _CLIENT])
            assert "HELLO" not in done["stdout"], "there is no other way out"
            await client.call("ping")

    asyncio.run(main())


def test_a_guest_without_one_sets_nothing(guest_dir: Path, start_guest: Callable[..., object]) -> None:
    guest = start_guest(guest_dir)

    async def main() -> None:
        async with await GuestClient.connect_unix(guest.socket) as client:  # type: ignore[attr-defined]
            done = await client.call("exec", argv=["sh", "-c", "env | grep -i proxy=http://127.0.0.1"])
            assert done["stdout"] == ""

    asyncio.run(main())

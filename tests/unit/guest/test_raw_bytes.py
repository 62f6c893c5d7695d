"""Bytes behind a line instead of in it: whole, in any pieces, in both directions, and beside other requests."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

from rock.wire.guest_client import GuestClient

MIB = 1 << 20


def test_a_file_goes_in_and_out_beside_other_requests(plain_guest: Any, guest_dir: Path) -> None:
    data = os.urandom(3 * MIB) + b'\n{"id": 1, "ok": true}\n'
    path = str(guest_dir / "deep" / "file")

    async def main() -> None:
        async with await GuestClient.connect_unix(plain_guest.socket) as client:
            sizes = await asyncio.gather(
                client.call("file.write", path=path, attached=data, mode=0o640),
                *(client.call("ping") for _ in range(3)),
                client.call("file.write", path=path + "2", attached=b""),
            )
            assert sizes[0] == {"size_bytes": len(data)}
            found = await asyncio.gather(
                *(
                    client.call("file.read", path=path, offset=at, length=MIB, raw=True)
                    for at in range(0, 4 * MIB, MIB)
                ),
                client.call("ping"),
                client.call("file.read", path=path + "2", raw=True),
            )
            assert b"".join(one["data"] for one in found[:4]) == data
            assert [one["eof"] for one in found[:4]] == [False, False, False, True]
            assert found[-1]["data"] == b""
            job = (await client.call("job.start", argv=["cat"], keep="all", limit_bytes=4 * MIB))["job"]
            await client.call("job.write", job=job, attached=data[:MIB], eof=True)
            back = b""
            while len(back) < MIB:
                back += (await client.call("job.read", job=job, offset=len(back), wait_s=30, raw=True))["data"]
            assert back == data[:MIB]

    asyncio.run(main())


def test_bytes_may_come_in_any_pieces_and_a_size_that_is_none_ends_the_connection(
    plain_guest: Any, guest_dir: Path
) -> None:
    line = json.dumps({"id": 1, "op": "file.write", "path": str(guest_dir / "f"), "data_bytes": 7}).encode()
    everything = line + b"\nab\ncd\ne" + b'{"id": 2, "op": "ping"}\n'
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(plain_guest.socket)
        for byte in everything:
            near.sendall(bytes([byte]))
        answers = near.makefile("rb")
        assert json.loads(answers.readline())["value"] == {"size_bytes": 7}
        assert json.loads(answers.readline())["id"] == 2
        assert (guest_dir / "f").read_bytes() == b"ab\ncd\ne"
        near.sendall(b'{"id": 3, "op": "file.write", "path": "/x", "data_bytes": -1}\n')
        assert "data_bytes is -1" in json.loads(answers.readline())["error"]["detail"]
        assert answers.readline() == b""

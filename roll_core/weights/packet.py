"""One version of the weights as bytes: whole, or what changed since another version. [ours]

Layout: ``RWGT`` and the version of this layout, the header's length (8 bytes) and CRC-32 (4 bytes, both little-endian),
the header (JSON), the payload. A tensor is compared block by block; the payload has its changed blocks, or all of it
where that is shorter.

Invariants: reading what was packed gives the very bits; the header is checked, and every tensor after it was put
together (CRC-32), so a torn packet, or changes to other weights than those they were made from, are an error and never
a wrong policy; a packet of changes names the version it needs.

Shape legend: N bytes of a tensor, K blocks.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roll_core.errors import WeightsTorn, WrongBase
from roll_core.types import Weights

Bytes = npt.NDArray[np.uint8]

BLOCK_BYTES = 64
"""Small, because what a step changes in bfloat16 is scattered: a longer block nearly always holds some change."""

_MAGIC = b"RWGT\x01"
_PREFIX = "<QI"
_INDEX_BYTES = 4


def pack(weights: Weights, base: Weights | None = None, *, block_bytes: int = BLOCK_BYTES) -> Bytes:
    """``weights`` as bytes; with ``base`` only what differs from it, for who holds that version."""
    parts: list[Bytes] = []
    tensors: list[dict[str, Any]] = []
    for name, tensor in weights.tensors.items():
        now_N = as_bytes(tensor)
        before = base.tensors.get(name) if base is not None else None
        blocks_K = None
        if before is not None and before.shape == tensor.shape and before.dtype == tensor.dtype:
            blocks_K = _changed(now_N, as_bytes(before), block_bytes)
        entry: dict[str, Any] = {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "crc": _crc(now_N),
        }
        if blocks_K is not None and len(blocks_K) * (block_bytes + _INDEX_BYTES) < len(now_N):
            entry["blocks"] = len(blocks_K)
            parts += [blocks_K.astype("<u4").view(np.uint8), _take(now_N, blocks_K, block_bytes)]
        else:
            parts.append(now_N)
        tensors.append(entry)
    header = {
        "version": weights.version,
        "base": base.version if base is not None else None,
        "block": block_bytes,
        "tensors": tensors,
    }
    head = json.dumps(header).encode()
    first = np.frombuffer(_MAGIC + struct.pack(_PREFIX, len(head), zlib.crc32(head)) + head, dtype=np.uint8)
    return np.concatenate([first, *parts])


def unpack(packet: Bytes, held: Weights | None = None) -> Weights:
    """The weights; ``held`` is what the receiver has. Nothing is shared with either.

    Raises WrongBase when the packet holds changes to another version than ``held``, WeightsTorn when it is damaged.
    """
    header, place = _header(packet)
    version, block = int(header["version"]), int(header["block"])
    if header["base"] is not None and (held is None or held.version != header["base"]):
        found = "none" if held is None else f"version {held.version}"
        raise WrongBase(f"version {version} came as changes to version {header['base']}, and {found} is held here")
    tensors: dict[str, Tensor] = {}
    for entry in header["tensors"]:
        name = entry["name"]
        tensor = torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        now_N = as_bytes(tensor)
        if "blocks" in entry:
            assert held is not None
            now_N[:] = as_bytes(held.tensors[name])
            place = _put(now_N, packet, place, int(entry["blocks"]), block)
        else:
            if place + len(now_N) > len(packet):
                raise WeightsTorn(f"version {version} ends in {name}, after {len(packet)} bytes")
            now_N[:] = packet[place : place + len(now_N)]
            place += len(now_N)
        if (crc := _crc(now_N)) != entry["crc"]:
            raise WeightsTorn(
                f"{name} of version {version} is not what was sent: its checksum is {crc:08x}, expected "
                f"{entry['crc']:08x}"
            )
        tensors[name] = tensor
    if place != len(packet):
        raise WeightsTorn(f"version {version} should have {place} bytes, and has {len(packet)}")
    return Weights(version, tensors)


def as_bytes(tensor: Tensor) -> Bytes:
    """Its bytes, shared with it where it is contiguous and on the CPU."""
    found: Bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return found


def whole_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _changed(now_N: Bytes, before_N: Bytes, block: int) -> npt.NDArray[np.int64]:
    """Which blocks differ; the last one may be shorter than the others."""
    differs_N = now_N != before_N
    whole = len(differs_N) // block * block
    changed = differs_N[:whole].reshape(-1, block).any(axis=1)
    if whole < len(differs_N):
        changed = np.append(changed, differs_N[whole:].any())
    found: npt.NDArray[np.int64] = np.flatnonzero(changed)
    return found


def _take(now_N: Bytes, blocks_K: npt.NDArray[np.int64], block: int) -> Bytes:
    whole = len(now_N) // block
    body = now_N[: whole * block].reshape(-1, block)[blocks_K[blocks_K < whole]].reshape(-1)
    tail = now_N[whole * block :] if len(blocks_K) and blocks_K[-1] == whole else now_N[:0]
    return np.concatenate([body, tail])


def _put(now_N: Bytes, packet: Bytes, place: int, count: int, block: int) -> int:
    """Write ``count`` blocks from ``place`` on into ``now_N``; returns where the next tensor begins."""
    end = place + count * _INDEX_BYTES
    blocks_K = packet[place:end].copy().view("<u4").astype(np.int64)
    whole = len(now_N) // block
    if len(blocks_K) != count or (count and blocks_K[-1] > whole):
        raise WeightsTorn("the packet ends, or names blocks that are not there")
    inner_K = blocks_K[blocks_K < whole]
    body = packet[end : end + len(inner_K) * block]
    if len(body) != len(inner_K) * block:
        raise WeightsTorn("the packet ends before its last block")
    now_N[: whole * block].reshape(-1, block)[inner_K] = body.reshape(-1, block)
    end += len(inner_K) * block
    if len(inner_K) < count:
        rest = len(now_N) - whole * block
        now_N[whole * block :] = packet[end : end + rest]
        end += rest
    return end


def _header(packet: Bytes) -> tuple[dict[str, Any], int]:
    begin = len(_MAGIC) + struct.calcsize(_PREFIX)
    raw = packet[:begin].tobytes()
    if len(raw) < begin or not raw.startswith(_MAGIC):
        raise WeightsTorn(f"{raw[: len(_MAGIC)]!r} is not how weights begin; expected {_MAGIC!r}")
    length, crc = struct.unpack(_PREFIX, raw[len(_MAGIC) :])
    head = packet[begin : begin + length].tobytes()
    if len(head) != length or zlib.crc32(head) != crc:
        raise WeightsTorn(
            f"the header of the weights is not what was sent: its checksum is {zlib.crc32(head):08x} over {len(head)} "
            f"bytes, expected {crc:08x} over {length}"
        )
    header: dict[str, Any] = json.loads(head)
    return header, begin + int(length)


def _crc(now_N: Bytes) -> int:
    return zlib.crc32(now_N.data)

"""What new weights cost on their way to engines on Ray, by transport: ``python -m benchmarks.weights [--quick]``.

A learner's process publishes bfloat16 weights, whole and as changes, to two receivers in processes of a local Ray, by
every ``weights.transport`` there is without GPUs: files on a disk, shared memory, Ray's object store, broadcast (gloo).
An update ends when every receiver has put the version together and compared its checksums, as an engine does before it
loads it. Between versions every parameter moves by N(0, 1) · 1e-6, about what a step of AdamW does at that rate.

``ratio_vs_file``: seconds of the file transport in the same form and run ÷ ours. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks._measuring import machine
from roll_core.cluster.ray_cluster import import_ray
from roll_core.models.qwen import ModelConfig, parameter_shapes
from roll_core.types import Weights
from roll_core.weights import Publisher, Subscriber
from roll_core.weights.broadcast import BroadcastChannel, Call
from roll_core.weights.channels import Channel, FolderChannel, RayChannel, Ticket

MODEL = ModelConfig(
    vocab=32_000, hidden=768, layers=16, heads=12, kv_heads=4, head_dim=64, intermediate=2304, max_context=4096
)
QUICK = replace(MODEL, vocab=8_000, hidden=384, layers=8, heads=6, kv_heads=2, intermediate=1152)
LR = 1e-6
RECEIVERS = ("one", "two")
TRANSPORTS = ("file", "shared_memory", "object_store", "broadcast")


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the updates. ``receive_s``: of the slower receiver; in a broadcast they wait for each other."""

    transport: str
    changes: bool
    update_s: float
    pack_s: float
    put_s: float
    receive_s: float
    sent_bytes: int
    sent_share: float
    ratio_vs_file: float = 1.0


class Receiver:
    """In a process of Ray's."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._weights = Subscriber()

    def begin(self, ticket: Ticket, delta: bool) -> None:
        self._weights = Subscriber(delta=delta)
        self._weights.receive(ticket)

    def receive(self, ticket: Ticket) -> tuple[int, float]:
        return self._weights.receive(ticket).version, self._weights.receive_s


def versions(config: ModelConfig, count: int) -> Iterator[Weights]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.02 * torch.randn(shape, generator=generator) if len(shape) > 1 else torch.ones(shape)
        for name, shape in parameter_shapes(config).items()
    }
    yield Weights(0, tensors)
    for version in range(1, count):
        tensors = {name: t + LR * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
        yield Weights(version, tensors)


def channel(transport: str, ray: Any, folder: Path) -> Channel:
    if transport == "file":
        return FolderChannel(folder)
    if transport == "shared_memory":
        return FolderChannel()
    if transport == "broadcast":
        found = BroadcastChannel(ray.util.get_node_ip_address())
        found.members = RECEIVERS
        return found
    return RayChannel(ray)


def measure(transport: str, changes: bool, config: ModelConfig, updates: int, local: Local) -> Row:
    way, everywhere = channel(transport, local.ray, local.folder), RayChannel(local.ray)
    publisher = Publisher(way, everywhere, delta=changes, dtype=torch.bfloat16)
    rows: list[Row] = []
    try:
        for weights in versions(config, 1 + updates):
            if weights.version == 0:
                publisher.hold(weights)
                local.all("begin", [publisher.whole().ticket] * len(RECEIVERS), changes)
                continue
            began_s = time.perf_counter()
            sent = publisher.publish(weights)
            told = local.all("receive", [_for(sent.ticket, name) for name in RECEIVERS])
            update_s = time.perf_counter() - began_s
            assert {version for version, _ in told} == {weights.version}
            receive_s = max(seconds for _, seconds in told)
            share = sent.sent_bytes / sent.whole_bytes
            rows.append(Row(transport, changes, update_s, sent.pack_s, sent.put_s, receive_s, sent.sent_bytes, share))
    finally:
        way.close()
        everywhere.close()
    middle = {name: statistics.median(getattr(row, name) for row in rows) for name in ("update_s", "pack_s", "put_s")}
    return replace(rows[-1], **middle, receive_s=statistics.median(row.receive_s for row in rows))


def _for(ticket: Ticket, name: str) -> Ticket:
    return replace(ticket, me=name) if isinstance(ticket, Call) else ticket


class Local:
    """Receivers on a Ray of this machine alone. ``folder``: a directory on a disk."""

    def __init__(self, ray: Any, folder: Path) -> None:
        self.ray, self.folder = ray, folder
        self._receivers = [ray.remote(Receiver).options(num_cpus=1).remote() for _ in RECEIVERS]

    def all(self, method: str, tickets: Sequence[Ticket], *args: Any) -> list[Any]:
        calls = [getattr(r, method).remote(t, *args) for r, t in zip(self._receivers, tickets, strict=True)]
        found: list[Any] = self.ray.get(calls, timeout=600)
        return found


@contextmanager
def local_ray() -> Iterator[Local]:
    ray = import_ray()
    with tempfile.TemporaryDirectory(prefix="rb-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local", num_cpus=len(RECEIVERS), include_dashboard=False, log_to_driver=False,
            object_store_memory=2 << 30, _temp_dir=folder,
        )  # fmt: skip
        try:
            yield Local(ray, Path(folder))
        finally:
            ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the parameters, fewer updates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config, updates = (QUICK, 3) if options.quick else (MODEL, 7)
    rows: list[Row] = []
    with local_ray() as local:
        for changes in (False, True):
            for transport in TRANSPORTS:
                row = measure(transport, changes, config, updates, local)
                file_s = next((r.update_s for r in rows if (r.transport, r.changes) == ("file", changes)), row.update_s)
                rows.append(replace(row, ratio_vs_file=file_s / row.update_s))
                form = "changes" if changes else "whole"
                print(
                    f"{transport}, {form}: {row.update_s:.3f} s an update (pack {row.pack_s:.3f}, put {row.put_s:.3f}, "
                    f"receive {row.receive_s:.3f}), {row.sent_bytes / 1e6:.1f} MB, {row.sent_share:.0%} of the whole; "
                    f"{rows[-1].ratio_vs_file:.2f} × file",
                    flush=True,
                )
    print(json.dumps({"quick": options.quick, "rows": [asdict(row) for row in rows], "on": machine()}))


if __name__ == "__main__":
    main()

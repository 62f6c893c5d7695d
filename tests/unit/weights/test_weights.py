"""Weights arrive bit for bit, whole or as changes, by every way; what is damaged or does not fit is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roll_core.errors import WeightsTorn, WrongBase
from roll_core.learners.processes import Rank, RankGroup
from roll_core.types import Weights
from roll_core.weights import Publisher, Subscriber
from roll_core.weights.broadcast import BroadcastChannel, Call
from roll_core.weights.channels import File, FolderChannel
from roll_core.weights.packet import pack, unpack, whole_bytes

torch.set_num_threads(1)
DTYPES = [torch.float32, torch.bfloat16]


def same(one: Weights, other: Weights) -> bool:
    return (
        one.version == other.version
        and list(one.tensors) == list(other.tensors)
        and all(t.dtype == other.tensors[n].dtype and torch.equal(t, other.tensors[n]) for n, t in one.tensors.items())
    )


@st.composite
def weights(draw: st.DrawFn) -> Weights:
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shapes = draw(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=4))
    tensors = {
        f"t{i}": torch.randn(shape, generator=g).to(draw(st.sampled_from(DTYPES))) for i, shape in enumerate(shapes)
    }
    return Weights(draw(st.integers(0, 5)), tensors)


@st.composite
def changed(draw: st.DrawFn, before: Weights) -> Weights:
    """Some elements of some tensors differ; a tensor may have come or gone, or have another shape."""
    tensors = {name: tensor.clone() for name, tensor in before.tensors.items()}
    for tensor in tensors.values():
        for place in draw(st.lists(st.integers(0, max(0, tensor.numel() - 1)), max_size=3)):
            if tensor.numel():
                tensor.view(-1)[place] += 1
    if draw(st.booleans()):
        tensors["new"] = torch.ones(draw(st.integers(0, 40)))
    return Weights(before.version + 1, tensors)


@given(weights(), st.integers(1, 40))
def test_whole_weights_are_read_as_they_were_packed(sent: Weights, block: int) -> None:
    assert same(unpack(pack(sent, block_bytes=block)), sent)


@given(st.data(), st.integers(1, 40))
def test_changes_on_top_of_what_is_held_are_the_new_version_and_leave_the_old_alone(
    data: st.DataObject, block: int
) -> None:
    before = data.draw(weights())
    after = data.draw(changed(before))
    kept = {name: tensor.clone() for name, tensor in before.tensors.items()}
    found = unpack(pack(after, before, block_bytes=block), before)
    assert same(found, after)
    assert same(Weights(before.version, kept), before)
    for tensor in found.tensors.values():
        tensor.zero_()
    assert same(Weights(before.version, kept), before), "nothing is shared"


@given(st.data())
def test_whatever_byte_is_damaged_no_other_policy_comes_out(data: st.DataObject) -> None:
    before = data.draw(weights())
    after = data.draw(changed(before))
    packet = pack(after, before if data.draw(st.booleans()) else None, block_bytes=8).copy()
    place = data.draw(st.integers(0, len(packet) - 1))
    packet[place] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(packet, before)
    except WeightsTorn:
        return
    assert same(found, after)  # a changed index that names a block which is the same


@pytest.mark.parametrize("cut", [1, 70, 900])
def test_a_packet_that_ends_early_is_torn(cut: int) -> None:
    packet = pack(Weights(1, {"w": torch.randn(300)}))
    with pytest.raises(WeightsTorn):
        unpack(packet[:-cut])


def test_changes_to_another_version_are_refused_by_name() -> None:
    one, two = (Weights(v, {"w": torch.ones(400) * (v > 1)}) for v in (1, 2))
    packet = pack(two, one)
    with pytest.raises(WrongBase, match="version 2 came as changes to version 1, and version 7 is held here"):
        unpack(packet, Weights(7, one.tensors))
    with pytest.raises(WrongBase, match="none is held"):
        unpack(packet)
    with pytest.raises(WeightsTorn, match="w of version 2 is not what was sent"):
        unpack(pack(Weights(2, {"w": torch.cat((torch.ones(1), torch.zeros(399)))}), one), Weights(1, two.tensors))


def test_few_changes_are_few_bytes_and_many_are_no_more_than_the_whole() -> None:
    before = Weights(1, {"w": torch.randn(100_000)})
    few, many = before.tensors["w"].clone(), torch.randn(100_000)
    few[::5000] += 1
    size = whole_bytes(before.tensors)
    assert len(pack(Weights(2, {"w": few}), before)) < size / 100
    assert len(pack(Weights(2, {"w": many}), before)) < size + 500


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("own", [True, False])
def test_followers_by_files_have_every_version_and_late_ones_the_whole(delta: bool, own: bool, tmp_path: Path) -> None:
    channel = FolderChannel(None if own else tmp_path / "shared")
    publisher, early = Publisher(channel, delta=delta, dtype=torch.bfloat16), Subscriber(delta=delta)
    sent = Weights(0, {"w": torch.randn(5000), "b": torch.randn(3)})
    shares = []
    for version in range(1, 5):
        sent = Weights(version, {"w": sent.tensors["w"].clone(), "b": sent.tensors["b"] + 1})
        sent.tensors["w"][version] = 7.0
        published = publisher.publish(sent)
        shares.append(published.metrics()["weights/sent_share"])
        found = early.receive(published.ticket)
        expected = Weights(version, {n: t.bfloat16() for n, t in sent.tensors.items()})
        assert same(found, expected)
    assert all(share < 0.2 for share in shares[1:]) == delta
    late = Subscriber()
    assert published.changes == delta
    if delta:
        with pytest.raises(WrongBase):
            late.receive(published.ticket)
    assert same(late.receive(publisher.whole().ticket), expected)
    assert isinstance(published.ticket, File)
    folder = Path(published.ticket.path).parent
    assert own or folder.parent == tmp_path / "shared"
    assert len(list(folder.glob("*.bin"))) <= 2, "old versions are removed"
    publisher.close()
    assert not folder.exists()
    with pytest.raises(WeightsTorn, match="cannot be read"):
        late.receive(published.ticket)


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    code = f"""
import os, signal, numpy
from pathlib import Path
from roll_core.weights.channels import FolderChannel
print(FolderChannel(Path({str(tmp_path)!r})).put(numpy.zeros(9, dtype=numpy.uint8)).path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    left = Path(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stdout.strip()
    )
    assert left.is_file()
    used = FolderChannel(tmp_path)
    assert not left.parent.exists()
    ticket = used.put(np.ones(5, dtype=np.uint8))
    FolderChannel(tmp_path).close()
    assert ticket.get().sum() == 5
    used.close()


def test_the_whole_on_demand_goes_the_way_that_reaches_everybody_and_anew_when_it_was_damaged(tmp_path: Path) -> None:
    channel, everywhere = FolderChannel(tmp_path / "near"), FolderChannel(tmp_path / "far")
    publisher = Publisher(channel, everywhere, delta=True)
    first = Weights(0, {"w": torch.randn(500)})
    publisher.hold(first)
    assert publisher.last is None
    follower = Subscriber()
    assert same(follower.receive(publisher.whole().ticket), first)
    second = Weights(1, {"w": first.tensors["w"] + torch.eye(500)[3]})
    published = publisher.publish(second)
    assert published.changes, "to the version it began with"
    assert isinstance(published.ticket, File)
    with Path(published.ticket.path).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    with pytest.raises(WeightsTorn, match=r"w of version 1 .* checksum is [0-9a-f]{8}, expected [0-9a-f]{8}"):
        follower.receive(published.ticket)
    whole = publisher.whole()
    assert isinstance(whole.ticket, File)
    assert (tmp_path / "far") in Path(whole.ticket.path).parents
    assert same(follower.receive(whole.ticket), second)
    assert publisher.whole().ticket == whole.ticket != publisher.whole(anew=True).ticket
    channel.close()
    everywhere.close()


class Peer:
    """A process of its own: rank 0 publishes by broadcast, the others follow."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.delta = rank, False
        self.tensors = {"w": torch.arange(3000.0)}
        self.subscriber = Subscriber()

    def begin(self, delta: bool) -> None:
        if self.rank.index == 0:
            self.channel = BroadcastChannel("127.0.0.1")
            self.publisher = Publisher(self.channel, delta=delta)

    def publish(self, version: int, members: tuple[str, ...]) -> Any:
        if self.rank.index:
            return None
        self.tensors = {"w": self.tensors["w"] + torch.eye(3000)[version]}
        self.channel.members = members
        return self.publisher.publish(Weights(version, self.tensors)).ticket

    def receive(self, ticket: Call, members: tuple[str, ...]) -> tuple[int, float] | None:
        if self.rank.index == 0:
            self.channel.settled()
            return ticket.size, self.tensors["w"].sum().item()
        me = f"peer {self.rank.index}"
        if me not in members:
            return None
        held = self.subscriber.receive(replace(ticket, me=me))
        return held.version, held.tensors["w"].sum().item()


@pytest.mark.parametrize("delta", [False, True])
def test_a_broadcast_reaches_its_members_whoever_they_are_this_time(delta: bool) -> None:
    group = RankGroup(Peer, 3, threads=1)
    sizes = []
    try:
        group.call("begin", delta)
        for version, members in enumerate([("peer 1", "peer 2")] * 3 + [("peer 1",)] * 2):
            ticket = group.call("publish", version, members)[0]
            (size, total), *found = group.call("receive", ticket, members)
            assert found == [(version, total) if f"peer {i}" in members else None for i in (1, 2)]
            sizes.append(size)
    finally:
        group.close()
    assert (sizes[1] < sizes[0] / 10) == delta
    with pytest.raises(WeightsTorn, match="is for peer 1, and not for 'peer 2'"):
        replace(ticket, me="peer 2").get()

"""Whatever is kept, lost, or lost with its answer: the episode a caller sees is the one without any disturbance."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from rock.domain.errors import DeadlineExceeded, RockError, RuntimeUnavailable, SandboxLost
from rock.sdk.journal import Checkpoint, Journal
from rock.sdk.lease import HeldLease
from rock.sdk.recovery import Patience, Seat
from rock.wire.models import RecoveryReport

ACTIONS = st.integers(0, 3)
EVENTS = st.sampled_from(["step", "step", "step", "loss", "disk lost", "snapshot fails", "answer lost"])


@dataclass(frozen=True)
class View:
    snapshot: str = ""
    id: str = "ls-1"
    sandbox_id: str = "sb-1"
    epoch: int = 1
    env: str = "book"
    recovery: str = "snapshot"
    snapshot_every: int = 3


@dataclass(frozen=True)
class Kept:
    name: str


@dataclass
class Book:
    """A held sandbox whose environment writes down every action: its state is the whole past, in files."""

    view: View = View()
    lost: RockError | None = None
    over: bool = False
    active: bool = True
    recovers: bool = True
    files: list[Any] = field(default_factory=list)
    kept: dict[str, list[Any]] = field(default_factory=dict)
    trouble: str = ""
    on_loss: Any = None

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def call(self, op: str, **fields: Any) -> Any:
        if self.lost is not None:
            raise SandboxLost("gone")
        if op == "env.hooks":
            return {"snapshots": True}
        if op == "env.checkpoint":
            return {"state": {"entries": len(self.files)}}
        if op == "env.reset":
            self.files = [(fields["task"], fields["seed"])]
        elif op == "env.step":
            self.files.append(fields["action"])
        return {"observation": repr(self.files), "reward": 0.0, "terminated": False, "truncated": False, "info": {}}

    async def snapshot(self, number: int, step: int, *, timeout_s: float) -> Kept:
        trouble, self.trouble = self.trouble, ""
        if trouble == "snapshot fails":
            raise RuntimeUnavailable("no")
        name = f"snapshot-{self.view.epoch}-{number}"
        self.kept = {name: list(self.files)}
        if trouble == "answer lost":
            raise DeadlineExceeded("no answer")
        return Kept(name)

    async def rebind(self, *, wait_s: float, snapshot: str) -> None:
        self.files = list(self.kept.get(snapshot, ["what an image holds"]))
        made_of = snapshot if snapshot in self.kept else ""
        self.view = replace(self.view, snapshot=made_of, epoch=self.view.epoch + 1, sandbox_id=f"sb-{self.view.epoch}")
        self.lost = None

    def lose(self, why: RockError) -> None:
        self.lost = why

    @property
    def calls(self) -> Book:
        return self

    async def ended_sandbox(self, sandbox_id: str) -> None:
        return None

    async def tell(self, lease_id: str, report: RecoveryReport) -> None:
        pass


@settings(max_examples=150)
@given(st.lists(st.tuples(EVENTS, ACTIONS), max_size=30), st.integers(1, 4))
def test_every_answer_is_that_of_an_undisturbed_episode(plan: list[tuple[str, int]], every: int) -> None:
    async def main() -> None:
        book, journal, reports = Book(), Journal(), list[RecoveryReport]()
        journal.begin("t", 7, {})
        seat = Seat(
            cast(HeldLease, book),
            journal,
            asyncio.Lock(),
            patience=Patience(),
            on_report=lambda report, instead: None if instead else reports.append(report),
            snapshot_every=every,
        )
        await seat.open()
        expected: list[Any] = [("t", 7)]
        value = await seat.perform("env.reset", 5, replay=False, repeatable=True, seq=0, task="t", seed=7, options={})
        journal.was_reset(value)
        for event, action in plan:
            if event in ("loss", "disk lost"):
                await seat.snapshots.settled()
                book.kept = {} if event == "disk lost" else book.kept
                book.lost = SandboxLost("killed")
            elif event != "step":
                book.trouble = event
            past, before = len(expected) - 1, len(reports)
            value = await seat.perform("env.step", 5, replay=True, repeatable=True, seq=len(expected), action=action)
            expected.append(action)
            assert value["observation"] == repr(expected)
            for report in reports[before:]:
                assert (report.verdict, report.from_step + report.steps) == ("resumed", past)
            journal.stepped(action, value)
            seat.snapshots.begin_if_due()
        await seat.snapshots.settled()
        await seat.close()

    asyncio.run(main())


@given(st.lists(ACTIONS, max_size=12), st.integers(0, 12))
def test_what_came_since_a_checkpoint_is_the_rest_and_the_whole_is_kept(actions: list[int], step: int) -> None:
    journal = Journal()
    journal.begin("t", 0, {})
    answer = {"observation": "", "reward": 0.0, "terminated": False, "truncated": False}
    journal.was_reset(answer)
    for action in actions:
        journal.stepped(action, answer)
    assert [action for _, action in journal.since(0)] == actions
    rest = journal.since(min(step, len(actions)))
    assert [number for number, _ in rest] == list(range(min(step, len(actions)) + 1, len(actions) + 1))
    journal.checkpoint = Checkpoint("s", len(actions), None)
    assert journal.goes_on_from == "s"
    journal.begin("t", 1, {})
    assert journal.goes_on_from == ""
    assert journal.checkpoint is None

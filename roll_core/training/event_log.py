"""``events.jsonl``: who generated which token under which version, what was trained on, and what became of it.

One compact JSON object per line, its kind under ``e``:

========  ==============================================================================================
begin     the process began, or began again, at ``step`` with weights of this digest; whatever the log says of
          later steps before this line was undone by going back to a checkpoint
start     an episode was admitted: ``id``, group ``g``, ``task``, ``seed``, ``v`` the version that initiated it
end       an episode ended: outcome ``o``, and per turn ``t`` the context ``c``, the sampled ids ``i``, their versions
          ``v`` as [version, count] runs, their behaviour log-probs ``l`` (base64 of little-endian float32), and the
          observation's digest ``s``
book      the account that the episode ended on
batch     the learner took these groups at version ``v``; ``progress`` is what its schedules were told, ``threads``
          torch's threads in it, where not the process's
tune      from ``step`` on rollout goes on by this ``alpha`` and redundancy, and ``why``
update    it made version ``v`` of them, whose weights have this digest
publish   every engine samples with ``v``
save      a checkpoint of ``step`` is whole on the disk
========  ==============================================================================================

Invariants: an episode's ``end`` comes before the batch that it is in; nothing is buffered, so after ``kill -9`` the log
says no less than what happened; log-probs are float32 as the learner takes them, so a replayed batch is bit for bit
the one that was trained on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from rock.domain.outcome import Completed, Outcome, Truncated, Void, VoidCause
from roll_core.rollout.machine import Pace
from roll_core.rollout.work import Booking, EpisodeSpec
from roll_core.training.lines import Lines
from roll_core.types import Generation, Group, Trajectory, Turn, Weights

FILE = "events.jsonl"
_FORMAT = 1
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class EventSink:
    """What the loop tells; the module says what each kind is. This one writes nothing."""

    def begin(self, run_id: str, step: int, weights: Weights) -> None:
        pass

    def started(self, spec: EpisodeSpec) -> None:
        pass

    def ended(self, trajectory: Trajectory) -> None:
        pass

    def booked(self, booking: Booking) -> None:
        pass

    def batch(self, step: int, version: int, progress: float, groups: Sequence[Group], *, threads: int = 0) -> None:
        pass

    def tuned(self, step: int, pace: Pace, why: str) -> None:
        pass

    def updated(self, step: int, weights: Weights) -> None:
        """Blocks for as long as the digest of the weights takes."""

    def published(self, version: int) -> None:
        pass

    def saved(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class EventLog(EventSink):
    """In a run's directory."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._lines = Lines(directory / FILE, max_bytes)
        self._ended: set[str] = set()
        """Episodes whose ``end`` is written and which are not booked yet."""

    def begin(self, run_id: str, step: int, weights: Weights) -> None:
        self._write(
            "begin", format=_FORMAT, run=run_id, step=step, v=weights.version, weights=digest(weights),
            threads=torch.get_num_threads(), torch=torch.__version__,
        )  # fmt: skip

    def started(self, spec: EpisodeSpec) -> None:
        self._write("start", id=spec.id, g=spec.group_id, task=spec.task, seed=spec.seed, v=spec.init_version)

    def ended(self, trajectory: Trajectory) -> None:
        self._ended.add(trajectory.id)
        self._write("end", **encode(trajectory))

    def booked(self, booking: Booking) -> None:
        if booking.trajectory is not None and booking.episode_id not in self._ended:
            self.ended(booking.trajectory)  # cancelled, or played outside of training
        self._ended.discard(booking.episode_id)
        self._write("book", id=booking.episode_id, as_=str(booking.state), step=booking.step)

    def batch(self, step: int, version: int, progress: float, groups: Sequence[Group], *, threads: int = 0) -> None:
        members = [[g.id, g.task, [m.id for m in g.members]] for g in groups]
        own = {"threads": threads} if threads else {}
        self._write("batch", step=step, v=version, progress=progress, groups=members, **own)

    def tuned(self, step: int, pace: Pace, why: str) -> None:
        self._write("tune", step=step, why=why, **asdict(pace))

    def updated(self, step: int, weights: Weights) -> None:
        self._write("update", step=step, v=weights.version, weights=digest(weights))

    def published(self, version: int) -> None:
        self._write("publish", v=version)

    def saved(self, step: int) -> None:
        self._write("save", step=step)

    def close(self) -> None:
        self._lines.close()

    def _write(self, kind: str, **values: Any) -> None:
        record = {"e": kind, "at": round(time.time(), 3)} | {name.rstrip("_"): value for name, value in values.items()}
        self._lines.append(_to_json(record).encode())


def digest(weights: Weights) -> str:
    """Names, types, shapes and bits of every parameter. About a second per gigabyte."""
    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(weights.tensors):
        tensor = weights.tensors[name].detach().cpu().contiguous()
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


# --- trajectories ----------------------------------------------------------------------------------------------------


def encode(trajectory: Trajectory) -> dict[str, Any]:
    """What the learner sees of it. Its texts are in ``episodes.jsonl``."""
    return {
        "id": trajectory.id,
        "g": trajectory.group_id,
        "env": trajectory.env,
        "task": trajectory.task,
        "seed": trajectory.seed,
        "v": trajectory.init_version,
        "sandbox": trajectory.sandbox_id,
        "o": _encode_outcome(trajectory.outcome),
        "t": [_encode_turn(turn) for turn in trajectory.turns],
    }


def decode(record: dict[str, Any]) -> Trajectory:
    return Trajectory(
        id=record["id"],
        group_id=record["g"],
        env=record["env"],
        task=record["task"],
        seed=record["seed"],
        init_version=record["v"],
        turns=tuple(_decode_turn(turn) for turn in record["t"]),
        outcome=_decode_outcome(record["o"]),
        sandbox_id=record["sandbox"],
    )


def _encode_outcome(outcome: Outcome) -> list[Any]:
    if isinstance(outcome, Completed):
        return ["completed", outcome.reward, outcome.success]
    if isinstance(outcome, Truncated):
        return ["truncated", outcome.reason, outcome.reward, outcome.success]
    return ["void", str(outcome.cause), outcome.detail]


def _decode_outcome(values: list[Any]) -> Outcome:
    kind, *rest = values
    if kind == "completed":
        return Completed(*rest)
    if kind == "truncated":
        return Truncated(*rest)
    return Void(VoidCause(rest[0]), rest[1])


def _encode_turn(turn: Turn) -> dict[str, Any]:
    generation = turn.generation
    return {
        "c": turn.context_ids,
        "i": generation.token_ids,
        "v": [[version, len(list(run))] for version, run in groupby(generation.versions)],
        "l": base64.b64encode(_little_endian(array("f", generation.logprobs)).tobytes()).decode(),
        "f": generation.finish_reason,
        "r": turn.reward,
        "ok": turn.valid,
        "s": hashlib.blake2b(turn.observation.encode(), digest_size=8).hexdigest(),
    }


def _decode_turn(record: dict[str, Any]) -> Turn:
    logprobs = array("f")
    logprobs.frombytes(base64.b64decode(record["l"]))
    generation = Generation(
        token_ids=tuple(record["i"]),
        logprobs=tuple(_little_endian(logprobs)),
        versions=tuple(version for version, count in record["v"] for _ in range(count)),
        finish_reason=record["f"],
    )
    # Of the observation only the digest is known, which is enough to tell equal ones (GiGPO's anchor states).
    seen = record.get("s", "")
    return Turn(tuple(record["c"]), generation, seen, "", "", reward=record["r"], valid=record["ok"])


def _little_endian(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values

"""What survives ``kill -9``: checkpoints that are whole or not there.

Invariants: a checkpoint is written beside, flushed to the disk, and renamed; its manifest lists the SHA-256 of every
file, so one that was torn all the same (a full disk, a copied directory) is recognised and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from roll_core.errors import CheckpointError
from roll_core.rollout.machine import MachineState
from roll_core.training.metrics import Rate

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Everything but the learner's own files. ``step``: learner steps done."""

    step: int
    machine: MachineState
    elapsed_s: float
    success_before: Rate | None = None


_adapter: TypeAdapter[TrainerState] = TypeAdapter(TrainerState)


class CheckpointStore:
    """The checkpoints of one run, under ``directory``."""

    def __init__(self, directory: Path, keep: int, *, keep_first: bool = False) -> None:
        """``keep_first``: beside the last ``keep``, that of step 0, where a replay of the whole run begins."""
        self._directory = directory
        self._keep = keep
        self._keep_first = keep_first

    def save(self, state: TrainerState, save_learner: Callable[[Path], None]) -> Path:
        """Blocks. ``save_learner`` writes the learner's files into the directory it is given."""
        final = self._directory / _name(state.step)
        partial = self._directory / f".partial-{state.step:08d}-{os.getpid()}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "learner").mkdir(parents=True)
            save_learner(partial / "learner")
            (partial / _STATE).write_bytes(_adapter.dump_json(state))
            _write_manifest(partial)
            if final.exists():  # the run went back to an earlier checkpoint and came here again
                shutil.rmtree(final)
            partial.rename(final)
            _fsync(self._directory)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"The checkpoint of step {state.step} could not be written to {self._directory}: {error}. Free space "
                "there, or set checkpoint.directory, and continue with `rock train --resume`."
            ) from error
        self._prune()
        return final

    def latest(self) -> Path | None:
        """The newest whole checkpoint; torn ones are passed over with a warning."""
        for path in reversed(self._all()):
            problem = find_damage(path)
            if problem is None:
                return path
            log.warning("checkpoint %s is torn (%s); trying the one before it", path, problem)
        return None

    def whole(self) -> list[Path]:
        """All that are not torn, the oldest first."""
        return [path for path in self._all() if find_damage(path) is None]

    def _all(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"))

    def _prune(self) -> None:
        for path in self._all()[: -self._keep]:
            if self._keep_first and path.name == _name(0):
                continue
            shutil.rmtree(path, ignore_errors=True)
        for path in self._directory.glob(".partial-*"):
            shutil.rmtree(path, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def load_state(path: Path) -> TrainerState:
    """Raises CheckpointError when the checkpoint is torn or of another version."""
    problem = find_damage(path)
    if problem is not None:
        raise CheckpointError(f"Checkpoint {path} is torn: {problem}. Use an earlier one.")
    try:
        return _adapter.validate_json((path / _STATE).read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"Checkpoint {path} was written by another version: {error}.") from error


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"no readable {_MANIFEST}: {error}"
    for name, digest in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _sha256(file) != digest:
            return f"{name} has changed"
    return None


def _write_manifest(directory: Path) -> None:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(directory)): _sha256(p) for p in files}
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [*files, directory / _MANIFEST]:
        _fsync(path)
    for path in {p.parent for p in files} | {directory}:
        _fsync(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Where the attention rhythm of a run's episodes comes from: its own records, or a checkpoint read once more.

Invariants: nothing is written; a damaged line of a record is an error with its place, not a gap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from rock.sdk import EpisodeRhythm
from roll_core.errors import CheckpointError, RecordError
from roll_core.learners.actor_attn import AttentionReader
from roll_core.models import Tokenizer
from roll_core.models.attention import mean_maps
from roll_core.models.checkpoint import load_tensors
from roll_core.training import assembly
from roll_core.training.checkpoint import load_state
from roll_core.training.credit_flow import rhythm_settings
from roll_core.training.event_log import FILE, decode
from roll_core.training.lines import read
from roll_core.training.reporting import RHYTHMS
from roll_core.training.rhythm_record import recomputed
from roll_core.training.run import RunDirectory
from roll_core.types import Trajectory

Maps = list[list[list[float]]]


@dataclass(frozen=True, slots=True)
class Found:
    record: EpisodeRhythm
    note: str
    """Where it comes from."""
    maps: Maps | None = None


def records(directory: Path) -> list[EpisodeRhythm]:
    """What the run recorded, the oldest first; of an episode that was recorded again, the last. May be empty."""
    found: dict[str, EpisodeRhythm] = {}
    for place, line in read(directory / RHYTHMS):
        try:
            record = EpisodeRhythm.model_validate_json(line)
        except ValidationError as error:
            raise RecordError(f"{place.path} is damaged at byte {place.offset}: {error}.") from error
        found.pop(record.episode_id, None)
        found[record.episode_id] = record
    return list(found.values())


def find(directory: RunDirectory, episode_id: str, *, maps: bool) -> Found:
    """The episode as it was recorded, else as the nearest checkpoint sees it. ``maps``: its maps too, which always come
    from a checkpoint. Raises RecordError when neither the record nor the log has it, CheckpointError without one."""
    recorded = next((r for r in records(directory.path) if r.episode_id == episode_id), None)
    if recorded is not None and not maps:
        return Found(recorded, "as recorded by the run")
    try:
        trajectory, step = logged(directory.path, episode_id)
        reader, at = reader_before(directory, recorded.step if recorded else step)
    except (RecordError, CheckpointError) as error:
        if recorded is None:
            raise
        return Found(recorded, f"as recorded by the run; without maps: {error}")
    record = recorded
    if record is None:
        tokenizer = Tokenizer.load(directory.tokenizer)
        record = recomputed(directory.recipe([]), reader, trajectory, step=step, tokenizer=tokenizer)
    source = "as recorded by the run; maps" if recorded else "recomputed"
    drawn = _maps(reader, trajectory) if maps else None
    return Found(record, f"{source} by the weights of the checkpoint of step {at}", drawn)


def logged(directory: Path, episode_id: str) -> tuple[Trajectory, int]:
    """The episode of the event log, and the step that trained on it (0: none did)."""
    found: Trajectory | None = None
    step, wanted = 0, json.dumps(episode_id).encode()
    for place, line in read(directory / FILE):
        if wanted not in line:
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            raise RecordError(f"{place.path} is damaged at byte {place.offset}: {error}.") from error
        if event["e"] == "end" and event["id"] == episode_id:
            found = decode(event)
        elif event["e"] == "batch" and any(episode_id in ids for _, _, ids in event["groups"]):
            step = event["step"]
    if found is None:
        raise RecordError(
            f"Neither {RHYTHMS} nor the event log in {directory} has an episode {episode_id!r}; `rock run rhythm RUN` "
            "lists what was recorded."
        )
    if not found.generated_tokens:
        raise RecordError(f"Episode {episode_id!r} has no token of the policy: there is no attention to read.")
    return found, step


def reader_before(directory: RunDirectory, step: int) -> tuple[AttentionReader, int]:
    """A reader with the weights of the last whole checkpoint before learner step ``step`` (else the earliest), and that
    checkpoint's step."""
    recipe = directory.recipe([])
    steps = {load_state(path).step: path for path in directory.checkpoints(recipe.checkpoint.keep).whole()}
    if not steps:
        raise CheckpointError(f"{directory.path} has no whole checkpoint to read attention with.")
    at = max((s for s in steps if s < step), default=min(steps))
    tokenizer = Tokenizer.load(directory.tokenizer)
    learner = assembly.make_learner(recipe, assembly.make_model(recipe, tokenizer))
    learner.load(steps[at] / "learner")
    model = assembly.make_model(recipe, tokenizer).to(recipe.learner.device)
    load_tensors(model, learner.weights().tensors)
    learner.close()
    reader = AttentionReader(model, rhythm_settings(recipe), shared=True, temperature=recipe.rollout.temperature)
    return reader, at


def _maps(reader: AttentionReader, trajectory: Trajectory) -> Maps:
    """Mean local and global map of the episode's own heads, rows of its response tokens."""
    tokens_1T = torch.tensor([trajectory.token_ids()])
    mask_1T = torch.tensor([trajectory.response_mask()], dtype=torch.float32)
    attended = reader.attended(tokens_1T, mask_1T)
    heads_SN = torch.cat((attended.local_BN, attended.global_BN))
    device = reader.model.model.embed_tokens.weight.device
    found = mean_maps(
        reader.model, tokens_1T.to(device), mask_1T.to(device), layers=reader.layers, heads_SN=heads_SN.to(device)
    )
    maps: Maps = found.cpu().tolist()
    return maps

"""What a step tells of attention rhythm: numbers for the metrics, and episodes to look at.

Invariants: nothing here changes what is learned; γ of a record is the γ with which its tokens were credited, computed
again from the same evidence; a record is of the policy before the update.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from rock.sdk import EpisodeRhythm, RhythmCoupling, RhythmHead
from rock.wire.rhythm import MOST_TOKENS
from roll_core.algorithms.credit import Evidence
from roll_core.algorithms.rhythm import Coupling, RhythmSettings, coupling, marks, rhythm_gamma
from roll_core.config import Recipe
from roll_core.learners.actor_attn import AttentionReader, Reading
from roll_core.learners.base import Rhythm
from roll_core.models import Tokenizer
from roll_core.training.credit_flow import credit_generator, rhythm_settings
from roll_core.training.roles import Roles
from roll_core.types import Group, TrainBatch, Trajectory

Text = Callable[[int], str]


def rhythm_metrics(
    recipe: Recipe, batch: TrainBatch, rhythm: Rhythm, entropy_BT: Tensor | None, *, version: int
) -> dict[str, float]:
    """``rhythm/…``, over the rows with an advantage: mean γ, share of tokens above 1, and how often FAI's peaks follow
    WAAD's, beside what chance would give."""
    settings, rows = rhythm_settings(recipe), (batch.advantages_BT * batch.mask_BT).any(dim=1)
    mask_BT = batch.mask_BT * rows.unsqueeze(1)
    gamma_BT = rhythm_gamma(settings, _evidence(recipe, batch.mask_BT, rhythm, entropy_BT, version))
    own = mask_BT > 0
    found = coupling(rhythm.waad_BT, rhythm.fai_BT, mask_BT, settings.lookback)
    if not own.any():
        return {}
    return {
        "rhythm/gamma_mean": gamma_BT[own].mean().item(),
        "rhythm/amplified": (gamma_BT[own] > 1).float().mean().item(),
        "rhythm/followed": found.followed / max(found.anchors, 1.0),
        "rhythm/followed_by_chance": found.expected / max(found.anchors, 1.0),
    }


def recorded(
    recipe: Recipe, roles: Roles, groups: Sequence[Group], *, step: int, version: int, tokenizer: Tokenizer
) -> list[EpisodeRhythm]:
    """The episodes of the last update that people are to see; ``version`` is that before it."""
    reader = roles.actor_attn
    last = reader.last if reader is not None else None
    if last is None:
        return []
    settings, trajectories = rhythm_settings(recipe), [m for g in groups for m in g.members]
    if last.batch.trajectory_ids != tuple(m.id for m in trajectories):
        return []  # read before this update: only the critics learned in it
    entropy_BT = torch.zeros_like(last.batch.mask_BT)
    for i, row in enumerate(last.shown):
        entropy_BT[row] = last.entropy_ST[i]
    evidence = _evidence(recipe, last.batch.mask_BT, last.attended.rhythm, entropy_BT, version)
    gamma_BT = rhythm_gamma(settings, evidence)
    return [
        episode_rhythm(
            trajectories[row], last, row, gamma_BT[row], last.entropy_ST[i], settings, step=step, text=texts(tokenizer),
            advantage_T=last.batch.advantages_BT[row],
        )
        for i, row in enumerate(last.shown)
        if int(last.batch.attention_BT[row].sum()) <= MOST_TOKENS
    ]  # fmt: skip


def recomputed(
    recipe: Recipe, reader: AttentionReader, trajectory: Trajectory, *, step: int, tokenizer: Tokenizer
) -> EpisodeRhythm:
    """The rhythm of an episode of the log as ``reader``'s policy sees it. Its advantage is not known; γ of the strategy
    ``random`` is another draw."""
    tokens_1T = torch.tensor([trajectory.token_ids()])
    mask_1T = torch.tensor([trajectory.response_mask()], dtype=torch.float32)
    attended = reader.attended(tokens_1T, mask_1T)
    entropy_1T = reader.entropy(tokens_1T, mask_1T)
    blank = torch.zeros_like(mask_1T)
    versions = torch.tensor([trajectory.versions()])
    batch = TrainBatch(
        tokens_1T, mask_1T, mask_1T, blank, blank, versions, blank[:, 0], versions[:, 0], (trajectory.id,)
    )
    gamma_1T = rhythm_gamma(reader.settings, _evidence(recipe, mask_1T, attended.rhythm, entropy_1T, step))
    last = Reading(batch, (0,), attended, (0,), entropy_1T, tuple(reader.layers))
    text = texts(tokenizer)
    return episode_rhythm(
        trajectory, last, 0, gamma_1T[0], entropy_1T[0], reader.settings, step=step, text=text, advantage_T=None
    )


def episode_rhythm(
    trajectory: Trajectory,
    reading: Reading,
    row: int,
    gamma_T: Tensor,
    entropy_T: Tensor,
    settings: RhythmSettings,
    *,
    step: int,
    text: Text,
    advantage_T: Tensor | None,
) -> EpisodeRhythm:
    """One row of a reading for people."""
    rhythm = reading.attended.rhythm
    waad_1T, fai_1T = rhythm.waad_BT[row : row + 1], rhythm.fai_BT[row : row + 1]
    mask_1T = reading.batch.mask_BT[row : row + 1].cpu()
    found = marks(waad_1T, fai_1T, mask_1T, settings)
    own = mask_1T[0].nonzero().flatten()

    def series(values_T: Tensor) -> tuple[float, ...]:
        return tuple(round(float(v), 6) for v in values_T.cpu()[own])

    def flags(values_T: Tensor) -> tuple[bool, ...]:
        return tuple(bool(v) for v in values_T[own])

    return EpisodeRhythm(
        episode_id=trajectory.id,
        step=step,
        task=trajectory.task,
        success=getattr(trajectory.outcome, "success", None),
        strategy=settings.strategy,
        coupling=_told(coupling(waad_1T, fai_1T, mask_1T, settings.lookback, entropy_T.unsqueeze(0))),
        tokens=tuple(text(i) for i in trajectory.token_ids()),
        own=tuple(own.tolist()),
        waad=series(waad_1T[0]),
        fai=series(fai_1T[0]),
        change=series(found.change_BT[0]),
        gamma=series(gamma_T),
        advantage=() if advantage_T is None else series(advantage_T),
        entropy=series(entropy_T),
        anchor=flags(found.anchor_BT[0]),
        preplan=flags(found.preplan_BT[0]),
        heads=_heads(reading, row),
    )


def texts(tokenizer: Tokenizer) -> Text:
    """The text of single tokens. A token that is half a character shows as a question mark in a diamond."""
    return lambda token_id: tokenizer.decode([token_id])


def total(couplings: Sequence[RhythmCoupling]) -> Coupling:
    """Of several episodes together."""
    found = Coupling()
    for one in couplings:
        found += Coupling(**one.model_dump())
    return found


def _told(found: Coupling) -> RhythmCoupling:
    return RhythmCoupling(**asdict(found))


def _heads(reading: Reading, row: int) -> tuple[RhythmHead, ...]:
    attended = reading.attended
    heads = attended.span_BN.shape[1] // len(reading.layers)
    told = []
    for n, span in enumerate(attended.span_BN[row].tolist()):
        kinds = [k for k, sets in (("local", attended.local_BN), ("global", attended.global_BN)) if sets[row, n]]
        head = RhythmHead(layer=reading.layers[n // heads], head=n % heads, span=round(span, 3), kind="+".join(kinds))
        told.append(head)
    return tuple(told)


def _evidence(recipe: Recipe, mask_BT: Tensor, rhythm: Rhythm, entropy_BT: Tensor | None, version: int) -> Evidence:
    return Evidence(
        mask_BT,
        entropy_BT=entropy_BT,
        waad_BT=rhythm.waad_BT,
        fai_BT=rhythm.fai_BT,
        generator=credit_generator(recipe, version),
    )

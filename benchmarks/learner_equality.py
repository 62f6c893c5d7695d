"""Do all learners learn the same? ``python -m benchmarks.learner_equality [--quick]``.

Five steps of PPO, of CISPO and of AsyPPO (values of two mini-critics that learn beside it, its advantage mask and its
entropy filter) on the same batches, by the plain torch learner and by every other one, in processes of their own on
CPUs: FSDP2, and Megatron-Core cut by tensor, pipeline and data parallelism. Replicas have different rows. A cell of the
table is the largest gap of the loss at any step and of any parameter at the end, against the torch learner; beyond 1e-5
and 1e-4 it has failed, and so has the command.

Then what packing saves: lengths with a long tail, as an agent's episodes have, through one process of the Megatron
learner, rows padded and rows packed.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks._measuring import machine
from roll_core.algorithms.advantages import gae
from roll_core.algorithms.credit import Credit, Evidence, transformed
from roll_core.algorithms.critics import advantage_mask, ensemble, entropy_filter
from roll_core.learners import Learner, LearnerConfig
from roll_core.learners.critics import CriticLearner, CriticSettings, ValueModel
from roll_core.learners.fsdp import FsdpLearner
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.learner import MegatronLearner
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig
from roll_core.types import TrainBatch

MODEL = ModelConfig(vocab=131, hidden=32, layers=4, heads=4, kv_heads=2, head_dim=8, intermediate=64, max_context=96)
STEPS, ROWS = 5, 12
LOSS_GAP, PARAMETER_GAP = 1e-5, 1e-4
_COMMON: dict[str, Any] = {"lr": 1e-3, "updates_per_batch": 2, "micro_batch_tokens": 160, "weight_decay": 0.1}
LOSSES = {
    "PPO": LearnerConfig(loss="ppo", **_COMMON),
    "CISPO": LearnerConfig(loss="cispo", activation_checkpointing=True, **_COMMON),
    "AsyPPO": LearnerConfig(loss="ppo", entropy_coef=0.01, **_COMMON),
}

Make = Callable[[LearnerConfig], Learner]


def policy() -> CausalLM:
    return CausalLM(MODEL, seed=1)


def megatron(layout: Layout, *, sharded: bool = False, packing: bool = True) -> Make:
    return lambda config: MegatronLearner(
        policy(), config, layout=layout, distributed_optimizer=sharded, packing=packing, threads=1
    )


LEARNERS: dict[str, Make] = {
    "FSDP2, 2 processes": lambda config: FsdpLearner(policy(), config, processes=2, threads=1),
    "Megatron, tensor 2": megatron(Layout(tensor=2)),
    "Megatron, tensor 2, sequence parallel": megatron(Layout(tensor=2, sequence=True)),
    "Megatron, pipeline 2": megatron(Layout(pipeline=2)),
    "Megatron, data 2, distributed optimizer": megatron(Layout(data=2), sharded=True),
    "Megatron, tensor 2 × data 2": megatron(Layout(tensor=2, data=2)),
    "Megatron, tensor 2, rows padded": megatron(Layout(tensor=2), packing=False),
}
QUICK = ("FSDP2, 2 processes", "Megatron, tensor 2 × data 2")


def lengths_of(rows: int, longest: int, generator: torch.Generator) -> list[int]:
    """Mostly short, a few near the ``longest``."""
    share = torch.rand(rows, generator=generator).pow(3)
    return [max(8, round(longest * float(s))) for s in share]


def make_batch(model: ModelConfig, seed: int, rows: int, longest: int, turns: int = 2) -> TrainBatch:
    """Rows of very different lengths, each of ``turns`` stretches of response tokens; advantages one for each row."""
    g = torch.Generator().manual_seed(seed)
    lengths = lengths_of(rows, longest, g)
    width = max(lengths)
    mask_BT = torch.zeros(rows, width)
    for row, length in enumerate(lengths):
        for turn in range(turns):
            end = length * (turn + 1) // turns
            mask_BT[row, end - max(2, length // (2 * turns)) : end] = 1
    noise_BT = 0.3 * torch.randn(rows, width, generator=g)
    return TrainBatch(
        tokens_BT=torch.randint(0, model.vocab, (rows, width), generator=g),
        mask_BT=mask_BT,
        attention_BT=torch.ones(rows, width),
        behaviour_logprobs_BT=(noise_BT - torch.tensor(float(model.vocab)).log()) * mask_BT,
        advantages_BT=torch.randn(rows, 1, generator=g) * mask_BT,
        versions_BT=torch.where(mask_BT > 0, 0, -1),
        rewards_B=torch.rand(rows, generator=g),
        group_B=torch.arange(rows) // 4,
    )


def asyppo(batches: Sequence[TrainBatch], model: CausalLM) -> list[TrainBatch]:
    """``batches`` with the credit that AsyPPO gives: two critics value each, learn from it, and mask and filter."""
    critics = CriticLearner([ValueModel(model, seed=n) for n in (1, 2)], CriticSettings(lr=1e-2))
    found = []
    for batch in batches:
        ends_BT = batch.mask_BT * (batch.mask_BT.flip(1).cumsum(1).flip(1) == 1)
        together = ensemble(critics.values(batch))
        rewards_BT = batch.rewards_B.unsqueeze(1) * ends_BT
        batch = replace(batch, rewards_BT=rewards_BT)
        advantages_BT, _ = gae(rewards_BT, together.mean_BT, batch.mask_BT)
        credit = transformed(
            Credit(advantages_BT, batch.mask_BT.clone()),
            Evidence(batch.mask_BT, value_std_BT=together.std_BT),
            [advantage_mask(0.2), entropy_filter(0.2)],
        )
        critics.train_step(batch)
        found.append(replace(batch, advantages_BT=credit.advantages_BT, entropy_weight_BT=credit.entropy_weight_BT))
    return found


def flat(learner: Learner) -> Tensor:
    tensors = learner.weights().tensors
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@dataclass(frozen=True, slots=True)
class Cell:
    learner: str
    loss: str
    loss_gap: float
    parameter_gap: float
    changed: float
    """The largest change of a parameter in the torch learner, beside which its gap is to be seen."""

    @property
    def equal(self) -> bool:
        return self.loss_gap <= LOSS_GAP and self.parameter_gap <= PARAMETER_GAP


def compare(name: str, loss: str, batches: Sequence[TrainBatch]) -> Cell:
    plain = TorchLearner(policy(), LOSSES[loss])
    expected = [plain.train_step(batch)["learner/loss"] for batch in batches]
    other = LEARNERS[name](LOSSES[loss])
    try:
        found = [other.train_step(batch)["learner/loss"] for batch in batches]
        parameters, after = flat(other), flat(plain)
    finally:
        other.close()
    loss_gap = max(abs(one - two) for one, two in zip(expected, found, strict=True))
    changed = float((after - flat(TorchLearner(policy()))).abs().max())
    return Cell(name, loss, loss_gap, float((parameters - after).abs().max()), changed)


@dataclass(frozen=True, slots=True)
class Padding:
    packing: bool
    padding_share: float
    spared: float
    """Share of padding that the same rows would have had unpacked, by the learner's own metric."""
    step_s: float
    """Median."""


def measure_padding(repeats: int) -> list[Padding]:
    """The same batches through one process, padded and packed."""
    model = ModelConfig(
        vocab=512, hidden=128, layers=4, heads=8, kv_heads=4, head_dim=16, intermediate=512, max_context=1024
    )
    batches = [make_batch(model, seed, 32, 1024, turns=4) for seed in range(repeats)]
    config = LearnerConfig(loss="ppo", micro_batch_tokens=4096)
    found = []
    for packing in (False, True):
        learner = MegatronLearner(CausalLM(model, seed=1), config, packing=packing, threads=1)
        try:
            learner.train_step(batches[0])
            told = [learner.train_step(batch) for batch in batches]
        finally:
            learner.close()

        def mean(name: str, told: list[dict[str, float]] = told) -> float:
            return statistics.fmean(metrics.get(f"learner/{name}", 0.0) for metrics in told)

        step_s = statistics.median(metrics["learner/step_s"] for metrics in told)
        found.append(Padding(packing, mean("padding_share"), mean("padding_spared"), step_s))
    return found


def print_table(cells: Sequence[Cell]) -> None:
    losses = list(dict.fromkeys(cell.loss for cell in cells))
    print("| learner | " + " | ".join(f"{loss}: loss, parameters" for loss in losses) + " |")
    print("|---" * (len(losses) + 1) + "|")
    for name in dict.fromkeys(cell.learner for cell in cells):
        row = [cell for cell in cells if cell.learner == name]
        told = (f"{c.loss_gap:.0e}, {c.parameter_gap:.0e}{'' if c.equal else ' FAILED'}" for c in row)
        print(f"| {name} | " + " | ".join(told) + " |")
    print(f"\nA parameter changed by up to {max(cell.changed for cell in cells):.3f}.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="PPO with two of the learners, fewer batches packed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain = [make_batch(MODEL, seed, ROWS, MODEL.max_context) for seed in range(STEPS)]
    batches = {loss: asyppo(plain, policy()) if loss == "AsyPPO" else plain for loss in LOSSES}
    names, losses = (QUICK, ("PPO",)) if options.quick else (tuple(LEARNERS), tuple(LOSSES))
    cells = []
    for name in names:
        for loss in losses:
            cells.append(compare(name, loss, batches[loss]))
            print(f"{name}, {loss}: {cells[-1]}", file=sys.stderr, flush=True)
    print_table(cells)
    padding = measure_padding(2 if options.quick else 6)
    for one in padding:
        print(
            f"\nrows {'packed' if one.packing else 'padded'}: {one.padding_share:.1%} of the positions are padding "
            f"({one.spared:.1%} spared), {one.step_s:.2f} s a step"
        )
    print(json.dumps({"cells": [asdict(c) for c in cells], "padding": [asdict(p) for p in padding], "on": machine()}))
    sys.exit(not all(cell.equal for cell in cells))


if __name__ == "__main__":
    main()

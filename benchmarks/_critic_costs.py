"""What critics cost: memory and processor time of one step, against the symmetric critic.

Invariants: memory is counted from the tensors that are there (parameters, optimizer state, and what autograd keeps of
the largest micro-batch), not from a formula; times are of the process, on one thread, the arms taking turns, the least
of several rounds. The table of Qwen3 sizes is the exception: counted from shapes, and named so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roll_core.config import load_recipe
from roll_core.learners.critics import CriticLearner, ValueModel
from roll_core.learners.logprobs import score
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig, load_hf
from roll_core.models.qwen import parameter_shapes
from roll_core.training import assembly
from roll_core.types import TrainBatch

ROWS, PROMPT, RESPONSE = 128, 20, 44
"""Of a batch of the recipe: 16 prompts of 8 responses, of a length that its episodes have."""
ROUNDS = 4
MIB = 1 << 20
GIB = 1 << 30

QWEN3 = {
    "0.6B": ModelConfig(151_936, 1024, 28, 16, 8, 128, 3072),
    "1.7B": ModelConfig(151_936, 2048, 28, 16, 8, 128, 6144),
    "4B": ModelConfig(151_936, 2560, 36, 32, 8, 128, 9728),
    "8B": ModelConfig(151_936, 4096, 36, 32, 8, 128, 12_288, tie=False),
    "14B": ModelConfig(151_936, 5120, 40, 40, 8, 128, 17_408, tie=False),
}
"""As in the checkpoints' config.json."""
STATE_BYTES = 4 + 8
"""Of a trained parameter in this project's learners: float32, and AdamW's two moments."""


def batch_of(vocab: int) -> TrainBatch:
    g = torch.Generator().manual_seed(0)
    width = PROMPT + RESPONSE
    mask_BT = torch.zeros(ROWS, width)
    mask_BT[:, PROMPT:] = 1
    rewards_BT = torch.zeros(ROWS, width)
    rewards_BT[:, -1] = (torch.rand(ROWS, generator=g) < 0.5).float()
    return TrainBatch(
        tokens_BT=torch.randint(0, vocab, (ROWS, width), generator=g),
        mask_BT=mask_BT,
        attention_BT=torch.ones(ROWS, width),
        behaviour_logprobs_BT=-mask_BT,
        advantages_BT=torch.randn(ROWS, 1, generator=g) * mask_BT,
        versions_BT=torch.where(mask_BT > 0, 0, -1),
        rewards_B=rewards_BT.sum(1),
        group_B=torch.arange(ROWS) // 8,
        rewards_BT=rewards_BT,
        truncated_B=torch.zeros(ROWS, dtype=torch.bool),
    )


def state_bytes(modules: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Parameters and optimizer state."""
    tensors: list[Tensor] = [p for module in modules for p in module.parameters()]
    tensors += [x for o in optimizers for state in o.state.values() for x in state.values() if isinstance(x, Tensor)]
    return sum(x.numel() * x.element_size() for x in tensors)


def kept_bytes(module: nn.Module, output: Any) -> int:
    """What autograd keeps for the backward pass of ``output()``, parameters not counted, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = output()  # held, so that no storage is given out twice
    assert result is not None
    return sum(kept.values())


def critic_activations(model: ValueModel, batch: TrainBatch, tokens: int) -> int:
    """Of the largest micro-batch that a step has."""
    rows = max(1, min(ROWS, tokens // batch.tokens_BT.shape[1]))
    before_BT = nn.functional.pad(batch.mask_BT[:rows, 1:] > 0, (0, 1))
    return kept_bytes(model, lambda: model(batch.tokens_BT[:rows], before_BT))


def measure(recipe: str, policy: Path, small: Path, arms: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """``arms``: overrides by name, ``ppo_symmetric`` among them. ``small``: checkpoint of the small critics' trunk."""
    torch.set_num_threads(1)
    loaded = load_hf(policy)
    batch = batch_of(loaded.config.vocab)
    here = ["model.source=checkpoint", f"model.path={json.dumps(str(policy))}", "tokenizer.source=checkpoint"]
    here += ["critic.source=checkpoint", f"critic.path={json.dumps(str(small))}", "warm_start.demonstrations=0"]
    recipes = {name: load_recipe(recipe, [*here, *overrides]) for name, overrides in arms.items()}
    critics = {name: assembly.make_critics(r, loaded) for name, r in recipes.items()}
    learner = assembly.make_learner(recipes["ppo_symmetric"], loaded)
    assert isinstance(learner, TorchLearner)
    seconds: dict[str, list[float]] = {name: [] for name in (*critics, "policy")}
    for _ in range(ROUNDS):
        for name, critic in critics.items():
            assert isinstance(critic, CriticLearner)
            begin = time.process_time()
            critic.train_step(batch)
            critic.estimate(batch)
            seconds[name].append(time.process_time() - begin)
        begin = time.process_time()
        learner.train_step(batch)
        seconds["policy"].append(time.process_time() - begin)
    tokens = recipes["ppo_symmetric"].learner.micro_batch_tokens
    best = {name: min(values) for name, values in seconds.items()}
    trainer_bytes = state_bytes([learner.model], learner._optimizers)
    trainer_activations = _learner_activations(learner.model, batch, tokens)
    table: dict[str, Any] = {
        "policy": {
            "parameters": sum(p.numel() for p in learner.model.parameters()),
            "state_mib": round(trainer_bytes / MIB, 2),
            "activations_mib": round(trainer_activations / MIB, 2),
            "step_cpu_s": round(best["policy"], 3),
        }
    }
    peaks, states = {}, {}
    for name, critic in critics.items():
        assert isinstance(critic, CriticLearner)
        kept = max(critic_activations(model, batch, tokens) for model in critic.models)
        states[name] = critic.memory_bytes()
        # One of learner and critics works at a time: the larger one's activations are the step's.
        peaks[name] = trainer_bytes + states[name] + max(kept, trainer_activations)
        table[name] = {
            "parameters": sum(p.numel() for model in critic.models for p in model.parameters()),
            "state_mib": round(states[name] / MIB, 2),
            "activations_mib": round(kept / MIB, 2),
            "step_cpu_s": round(best[name], 3),
        }
    base, whole = "ppo_symmetric", best["policy"]
    for name in critics:
        table[name]["against_symmetric"] = {
            "critic_state": round(states[name] / states[base], 3),
            "critic_step": round(best[name] / best[base], 3),
            "trainer_peak_memory": round(peaks[name] / peaks[base], 3),
            "trainer_step": round((best[name] + whole) / (best[base] + whole), 3),
        }
    return table


def _learner_activations(model: CausalLM, batch: TrainBatch, tokens: int) -> int:
    rows = max(1, min(ROWS, tokens // batch.tokens_BT.shape[1]))
    return kept_bytes(model, lambda: score(model, batch.tokens_BT[:rows], batch.mask_BT[:rows]))


def qwen3_table() -> list[dict[str, Any]]:
    """State of policy and critics in GiB by sizes, counted from shapes; activations not included."""
    rows = []
    for policy, critic in (("4B", "0.6B"), ("8B", "0.6B"), ("8B", "1.7B"), ("14B", "1.7B"), ("14B", "4B")):
        own, symmetric, mini = _parameters(policy), _trunk_parameters(policy), 2 * _trunk_parameters(critic)
        rows.append(
            {
                "policy": policy,
                "critics": f"2 × {critic}",
                "symmetric_gib": round(symmetric * STATE_BYTES / GIB, 1),
                "mini_gib": round(mini * STATE_BYTES / GIB, 1),
                "critic_state_ratio": round(mini / symmetric, 3),
                "trainer_state_ratio": round((own + mini) / (own + symmetric), 3),
            }
        )
    return rows


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _parameters(size: str) -> int:
    return sum(_numel(shape) for shape in parameter_shapes(QWEN3[size]).values())


def _trunk_parameters(size: str) -> int:
    shapes = parameter_shapes(QWEN3[size])
    return sum(_numel(s) for name, s in shapes.items() if not name.startswith("lm_head")) + QWEN3[size].hidden + 1

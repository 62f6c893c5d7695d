"""What a run trained on and published, for tests that hold the two against each other."""

from __future__ import annotations

import pytest
import torch

from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM
from roll_core.types import TrainBatch


@pytest.fixture
def seen(monkeypatch) -> tuple[list[TrainBatch], dict[int, dict[str, torch.Tensor]]]:
    """Every batch that was trained on, and the weights of every version."""
    batches: list[TrainBatch] = []
    versions: dict[int, dict[str, torch.Tensor]] = {}
    train_step, weights = TorchLearner.train_step, TorchLearner.weights

    def training(self, batch, **how):
        batches.append(batch)
        return train_step(self, batch, **how)

    def telling(self):
        told = weights(self)
        versions[told.version] = told.tensors
        return told

    monkeypatch.setattr(TorchLearner, "train_step", training)
    monkeypatch.setattr(TorchLearner, "weights", telling)
    return batches, versions


def logprobs_under(model: CausalLM, weights: dict[str, torch.Tensor], batch: TrainBatch) -> torch.Tensor:
    """BT, of every token under these weights, which ``model`` then has; 0 for the first."""
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        table_BTV = model(batch.tokens_BT).log_softmax(-1)
    chosen_BT = table_BTV[:, :-1].gather(2, batch.tokens_BT[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(chosen_BT, (1, 0))

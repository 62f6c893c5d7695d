"""The policy that reinforcement learning began with, as a role of its own: for the divergence of ``kl_coef``.

Invariants: it never changes; what it says of a batch is, bit for bit, what a learner with its own reference would say
on the same device.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from roll_core.errors import CheckpointError
from roll_core.learners.config import LearnerConfig
from roll_core.learners.saving import replacing
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models.checkpoint import load_tensors
from roll_core.models.lora import plain_copy
from roll_core.models.qwen import CausalLM
from roll_core.types import TrainBatch

_FILE = "reference.safetensors"


class ReferencePolicy:
    """A :class:`~roll_core.learners.base.Reference`."""

    def __init__(self, model: CausalLM, config: LearnerConfig, *, device: str = "cpu") -> None:
        """Takes a copy of ``model`` as it is now. ``config``: the learner's."""
        alone = config.model_copy(update={"kl_coef": 0.0})
        self._scorer = TorchLearner(plain_copy(model), alone, device=device)

    def logprobs(self, batch: TrainBatch) -> Tensor:
        return self._scorer.logprobs(batch.tokens_BT, batch.mask_BT).cpu()

    def save(self, directory: Path) -> None:
        with replacing(Path(directory) / _FILE) as partial:
            save_file({n: t.contiguous() for n, t in self._scorer.weights().tensors.items()}, partial)

    def load(self, directory: Path) -> None:
        """Raises CheckpointError when the file is missing, torn, or of another model."""
        path = Path(directory) / _FILE
        try:
            load_tensors(self._scorer.model, load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}. A run keeps the placement.reference it began with."
            ) from error

    def close(self) -> None:
        """There is nothing to end."""

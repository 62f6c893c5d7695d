"""What runs inside vLLM's worker processes: takes new weights out of shared memory and into the model.

vLLM finds :class:`WeightReceiver` by ``worker_extension_cls`` and mixes it into its worker; ``collective_rpc`` calls it
on every rank. Each rank maps the same file and keeps its own shard, so a tensor-parallel engine reads the weights once.

Invariants: when :meth:`WeightReceiver.receive_weights` returns, no matrix of the model, packed or tied, is an old one;
these processes do not outlive the trainer, however it ends: vLLM's engine core alone would, with all of its memory.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

OWNER = "ROCK_VLLM_OWNER"
"""Environment variable: process id of the trainer, and the directory that is to go with it, with a colon between."""


def _follow(owner: int, folder: str) -> None:
    core = os.getppid()  # vLLM's engine core, or the trainer itself where this process is the core
    try:
        watched = os.pidfd_open(owner)
    except ProcessLookupError:  # it was quicker
        pass
    else:
        select.select([watched], [], [])
    shutil.rmtree(folder, ignore_errors=True)
    if core not in (owner, 1):
        os.kill(core, signal.SIGKILL)
    os._exit(1)


# Here, and not in a call from outside: a worker imports this module before it loads the model, which may take minutes.
if OWNER in os.environ:
    _pid, _, _folder = os.environ.pop(OWNER).partition(":")
    threading.Thread(target=_follow, args=(int(_pid), _folder), name="follow the trainer", daemon=True).start()


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            yield name, file.get_tensor(name)


class WeightReceiver:
    """Mixed into vLLM's worker, which has ``model_runner``."""

    model_runner: Any

    def receive_weights(self, path: str) -> None:
        """Load the safetensors file at ``path``: Hugging Face's names, whole matrices."""
        self.model_runner.reload_weights(weights_iterator=_tensors(Path(path)), is_checkpoint_format=True)
        model: nn.Module = self.model_runner.get_model()
        _repack_tied_head(model)


def _repack_tied_head(model: nn.Module) -> None:
    """On CPUs vLLM multiplies by packed copies of the matrices. Reloading renews those of linear layers; a head that
    shares the embedding is none of them, and would go on with the packed copy of the old weights, without a word."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear"):
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)

"""Megatron-Core on a machine without CUDA, so that tests and small models need none.

Megatron asks ``torch.cuda`` for the current device in some 175 places and makes tensors on ``"cuda"``. Here torch, not
Megatron, is made to answer with the CPU: nothing of Megatron is patched, so what runs here is what runs on GPUs.

Invariants: where CUDA is available nothing is touched; where it is not, torch is as before once the context is left.
Only the learner's own processes enter it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange")
_CPU = torch.device("cpu")


def _on_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """``make`` without the wish for CUDA."""

    def made(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = _CPU
        return make(*args, **kwargs)

    return made


def _type_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """``tensor.type()`` says ``torch.cuda.…``: Megatron's optimizers tell precisions apart by that word."""

    def type_(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = original(tensor, *args, **kwargs)
        return found.replace("torch.", "torch.cuda.", 1) if isinstance(found, str) else found

    return type_


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _replacements() -> list[tuple[Any, str, Any]]:
    return [
        *((torch, name, _on_cpu(getattr(torch, name))) for name in _FACTORIES),
        (torch.Tensor, "type", _type_of(torch.Tensor.type)),
        (torch.Tensor, "cuda", lambda tensor, *_, **__: tensor),
        (torch.nn.Module, "cuda", lambda module, *_, **__: module),
        (torch.cuda, "current_device", lambda: _CPU),
        (torch.cuda, "synchronize", _nothing),
        (torch.cuda, "empty_cache", _nothing),
        # Of random numbers there is one stream; dropout is off anyway. A queue of calls for the time when CUDA is
        # there would only grow.
        (torch.cuda, "_lazy_call", _nothing),
        (torch.cuda, "get_rng_state", lambda *_, **__: torch.get_rng_state()),
        (torch.cuda.random, "get_rng_state", lambda *_, **__: torch.get_rng_state()),
    ]


@contextlib.contextmanager
def cuda_or_cpu(device: str = "cpu") -> Iterator[torch.device]:
    """What Megatron takes for its device, real or not, while the context lasts. ``device``: ``cpu`` or ``cuda:i``."""
    if torch.cuda.is_available():
        yield torch.device(device)
        return
    replacements = _replacements()
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    for owner, name, new in replacements:
        setattr(owner, name, new)
    try:
        yield _CPU
    finally:
        for owner, name, old in kept:
            setattr(owner, name, old)


_LASTING = contextlib.ExitStack()


@functools.cache
def cuda_or_cpu_for_good(device: str) -> torch.device:
    """The same until the process ends, for a process that does nothing else. Entered once, however often called."""
    return _LASTING.enter_context(cuda_or_cpu(device))

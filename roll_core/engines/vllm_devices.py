"""Which GPUs vLLM's processes see. vLLM takes GPUs from the first one on that its processes see, whatever device an
engine names: so each engine's processes are shown its own alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from roll_core.errors import RecipeError

VISIBLE = "CUDA_VISIBLE_DEVICES"

MAKING = threading.Lock()
"""Processes inherit this process's environment: it is one engine's at a time while its processes are made."""


def visible_gpus(device: str, count: int, environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of an engine on ``count`` GPUs from ``device`` on, which counts those that this
    process sees. Nothing for the CPU, and for a ``cuda`` without a number.

    Raises RecipeError when this process sees too few.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return {}
    first, wanted = int(number), int(number) + count
    seen = environ.get(VISIBLE)
    if seen is None:
        return {VISIBLE: ",".join(str(i) for i in range(first, wanted))}
    names = [name.strip() for name in seen.split(",") if name.strip()]
    if len(names) < wanted:
        raise RecipeError(
            f"engine.device {device!r} with engine.tensor_parallel={count} needs {wanted} GPUs here, and "
            f"{VISIBLE}={seen!r} shows {len(names)}: show more, or lower engine.count or engine.tensor_parallel."
        )
    return {VISIBLE: ",".join(names[first:wanted])}

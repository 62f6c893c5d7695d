"""vLLM's processes see the GPUs of their engine and no others, counted among those that the trainer sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roll_core.engines.vllm_devices import VISIBLE, visible_gpus
from roll_core.errors import RecipeError


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([None, "0,1,2,3,4,5,6,7,8,9,10,11", "GPU-a, GPU-b,4"]))
def test_engines_have_gpus_of_their_own_or_are_refused(engines: int, share: int, seen: str | None) -> None:
    environ = {} if seen is None else {VISIBLE: seen}
    names = [str(i) for i in range(12)] if seen is None else [name.strip() for name in seen.split(",")]
    taken: list[str] = []
    for index in range(engines):
        device = f"cuda:{index * share}"
        if len(names) < (index + 1) * share:
            with pytest.raises(RecipeError, match=rf"'{device}' .*tensor_parallel={share} needs"):
                visible_gpus(device, share, environ)
            return
        taken += visible_gpus(device, share, environ)[VISIBLE].split(",")
    assert taken == names[: engines * share]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_said_where_no_gpu_is_named(device: str) -> None:
    assert visible_gpus(device, 2, {VISIBLE: "3"}) == {}

"""The GPU benchmark's parts run, and say so, where there is no GPU; what they count is what the shapes say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import SIZES, parameters, train_flops
from roll_core.models import CausalLM


def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize(("part", "key"), [("engine_fp32", "logprob_gap_max"), ("rhythm", "read_ms")])
def test_a_part_ends_with_a_line_of_json(part: str, key: str) -> None:
    report = json.loads(run("--device", "cpu", "--size", "tiny", "--quick", "--only", part).stdout.splitlines()[-1])
    assert report["device"].startswith("cpu")
    assert key in report[part]
    if part == "engine_fp32":
        assert report[part]["logprob_gap_max"] < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_runs_everywhere() -> None:
    assert "--device cpu --size tiny" in run(code=2).stderr


def test_parameters_are_those_of_the_network_but_for_its_norms() -> None:
    config = SIZES["tiny"].model
    matrices = sum(p.numel() for p in CausalLM(config).parameters() if p.dim() > 1)
    assert parameters(config) == matrices
    assert train_flops(config, 10, 4) > 60 * matrices

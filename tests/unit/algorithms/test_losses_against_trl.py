"""The same tokens through our losses and through TRL's own loss code: equal values, equal gradients.

TRL's trainer is a real one, on a model of a few thousand parameters; only its log-probs are given, so that both sides
see the very same numbers. Where its conventions differ the test says how ours are set to mean the same: CISPO's
``epsilon_high`` is the cap itself and there is no lower one, ``delta`` is the dual clip.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from roll_core.algorithms import POLICY_LOSSES, LossInputs, PolicyLoss, aggregate, kl_estimate
from roll_core.algorithms.corrections import CorrectionSettings, corrected

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    class Given(GRPOTrainer):  # type: ignore[misc]
        """TRL's trainer, with the log-probs that it is handed."""

        logprobs_BT: Tensor

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, None]:
            return self.logprobs_BT, torch.zeros_like(self.logprobs_BT), None

    folder = tmp_path_factory.mktemp("trl")
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
    sizes = {"vocab_size": 3, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = Qwen3Config(**sizes, num_attention_heads=1, num_key_value_heads=1, head_dim=8)

    def make(**settings: Any) -> Any:
        arguments = GRPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], num_generations=2,
            per_device_train_batch_size=4, **settings,
        )  # fmt: skip
        trainer = Given(
            model=Qwen3ForCausalLM(config),
            args=arguments,
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_list([{"prompt": "a b"}] * 4),
        )
        trainer.model.eval()  # no gradient accumulation, which would scale the loss
        return trainer

    return make


@dataclass(frozen=True)
class Case:
    """TRL's settings beside our loss."""

    settings: dict[str, Any]
    ours: PolicyLoss


LENGTH = 9
CASES = {
    "grpo": Case({"loss_type": "grpo"}, POLICY_LOSSES["grpo"]),
    "dapo": Case({"loss_type": "dapo", "epsilon_high": 0.28}, POLICY_LOSSES["dapo"]),
    "dr_grpo": Case(
        {"loss_type": "dr_grpo", "max_completion_length": LENGTH}, POLICY_LOSSES["dr_grpo"].with_options(length=LENGTH)
    ),
    "bnpo": Case({"loss_type": "bnpo"}, POLICY_LOSSES["bnpo"]),
    "gspo": Case(
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        POLICY_LOSSES["gspo"],
    ),
    "gspo, wide": Case(
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        POLICY_LOSSES["gspo"].with_options(clip_low=0.2, clip_high=0.2),
    ),
    "cispo": Case({"loss_type": "cispo", "epsilon_high": 1.2}, POLICY_LOSSES["cispo"].with_options(clip_low=1.0)),
    "dual clip": Case({"loss_type": "grpo", "delta": 1.5}, POLICY_LOSSES["grpo"].with_options(dual_clip=1.5)),
    "a response's sum": Case({"loss_type": "luspo"}, POLICY_LOSSES["ppo"].with_options("seq-mean-token-sum")),
}


def inputs(seed: int) -> tuple[LossInputs, Tensor]:
    """Rows of every length from 1, log-ratios on both sides of every clip, one advantage a row; and a reference."""
    g = torch.Generator().manual_seed(seed)

    def drawn(scale: float) -> Tensor:
        return torch.randn(6, 7, dtype=torch.float64, generator=g) * scale

    mask = (torch.arange(7) < torch.tensor([[7], [1], [4], [7], [2], [5]])).double()
    prox = -drawn(1.0).abs() - 0.1
    advantages = torch.randn(6, 1, dtype=torch.float64, generator=g).expand(6, 7)
    x = LossInputs((prox + drawn(0.5)).requires_grad_(), prox, prox + drawn(0.7), advantages, mask)
    return x, prox + drawn(0.3)


def theirs(trainer: Any, x: LossInputs, **more: Tensor) -> Tensor:
    ids = torch.zeros(x.mask_BT.shape, dtype=torch.int64)
    trainer.logprobs_BT = x.logprobs_BT
    batch = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": x.mask_BT,
        "advantages": x.advantages_BT[:, 0], "old_per_token_logps": x.prox_logprobs_BT,
        "num_items_in_batch": x.mask_BT.sum(),
    }  # fmt: skip
    return trainer._compute_loss(trainer.model, batch | more)


def assert_same(ours: Tensor, theirs: Tensor, x: LossInputs) -> None:
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    gradients = [torch.autograd.grad(loss, x.logprobs_BT)[0] for loss in (ours, theirs)]
    assert gradients[1].abs().max() > 1e-3
    assert torch.allclose(*gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_trl(name: str, make_trainer: Callable[..., Any]) -> None:
    case = CASES[name]
    trainer = make_trainer(**case.settings)
    for seed in range(8):
        x, _ = inputs(seed)
        assert_same(case.ours(x), theirs(trainer, x), x)


def test_the_divergence_in_the_loss_is_that_of_trl(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(loss_type="bnpo", use_bias_correction_kl=False)
    trainer.beta = 0.3  # at its making a reference would be loaded by name
    for seed in range(8):
        x, reference = inputs(seed)
        kl = aggregate(kl_estimate(x.logprobs_BT, reference, "k3"), x.mask_BT, "token-mean")
        assert_same(POLICY_LOSSES["bnpo"](x) + 0.3 * kl, theirs(trainer, x, ref_per_token_logps=reference), x)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "cispo"])
def test_token_weights_go_with_a_loss_as_in_trl(name: str, make_trainer: Callable[..., Any]) -> None:
    case = CASES[name]
    trainer = make_trainer(**case.settings)
    trainer.use_vllm = True  # its sampler is not started: only the ratio that it would give is used
    ours = corrected(case.ours, CorrectionSettings(("token_weight",), cap=1.5))
    for seed in range(8):
        x, _ = inputs(seed)
        ratio = (x.prox_logprobs_BT - x.behaviour_logprobs_BT).exp().clamp(max=1.5)
        assert_same(ours(x), theirs(trainer, x, importance_sampling_ratio=ratio), x)

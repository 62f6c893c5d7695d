"""Log-probs from logits with padding, beside the plain formula; torch that answers for CUDA no longer than asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roll_core.algorithms import entropy
from roll_core.learners.megatron.compat import cuda_or_cpu
from roll_core.learners.megatron.vocabulary import vocab_parallel_score

torch.set_num_threads(1)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 9), st.integers(0, 4), st.sampled_from([1.0, 0.7]),
    st.sampled_from([1.0, 100.0]),
)  # fmt: skip
def test_values_and_gradients_are_those_of_log_softmax(
    seed: int, rows: int, vocab: int, padding: int, temperature: float, scale: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    logits_NV = (scale * torch.randn(rows, vocab + padding, generator=g)).requires_grad_()
    target_N = torch.randint(0, vocab, (rows,), generator=g)
    weights_2N = torch.randn(2, rows, generator=g)

    logprob_N, entropy_N = vocab_parallel_score(logits_NV, target_N, vocab=vocab, temperature=temperature)
    (gradient,) = torch.autograd.grad((logprob_N * weights_2N[0] + entropy_N * weights_2N[1]).sum(), logits_NV)

    logprobs_NV = (logits_NV[:, :vocab] / temperature).log_softmax(-1)
    expected_N, plain_entropy_N = logprobs_NV.gather(1, target_N[:, None])[:, 0], entropy(logprobs_NV)
    (expected_gradient,) = torch.autograd.grad(
        (expected_N * weights_2N[0] + plain_entropy_N * weights_2N[1]).sum(), logits_NV
    )
    assert torch.allclose(logprob_N, expected_N, rtol=1e-4, atol=1e-5)
    assert torch.allclose(entropy_N, plain_entropy_N, rtol=1e-4, atol=1e-5)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-4)
    assert (gradient[:, vocab:] == 0).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is CUDA nothing is replaced")
def test_torch_answers_for_cuda_only_inside_the_context() -> None:
    before = (torch.zeros, torch.Tensor.type, torch.Tensor.cuda, torch.cuda.current_device)
    with cuda_or_cpu() as device:
        assert torch.cuda.current_device() == device == torch.device("cpu")
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.tensor([1.0], device="cuda:0").type() == "torch.cuda.FloatTensor"
        assert torch.zeros(2).cuda().device.type == "cpu"
        torch.cuda.synchronize()
    assert (torch.zeros, torch.Tensor.type, torch.Tensor.cuda, torch.cuda.current_device) == before
    assert torch.zeros(1).type() == "torch.FloatTensor"


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is CUDA nothing is replaced")
def test_torch_is_as_before_after_an_error() -> None:
    before = torch.zeros
    with pytest.raises(ValueError, match="inside"), cuda_or_cpu():
        raise ValueError("inside")
    assert torch.zeros is before

"""The exponentials of a chunk, which a CPU takes to base 2 where its exp is slow: both ways against float64."""

import math

import pytest
import torch

from srpo_verl.algos import passes as chunks
from srpo_verl.functional import score_teacher, token_losses

V = 700
# exp and exp2 are right to 1 ulp (1.2e-7); the exponents to base 2 are rounded once more, where they are up to 40.
RTOL = 5e-6


@pytest.fixture(params=[False, True], ids=["exp", "exp2"])
def slow_exp(request, monkeypatch):
    monkeypatch.setattr(chunks, "has_slow_exp", lambda: request.param)
    return request.param


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_exponentials(slow_exp, temperature):
    shifted = -torch.rand(3, V, generator=torch.Generator().manual_seed(0)).mul_(24.0)
    shifted[:, 5] = -math.inf
    expected = torch.exp(shifted.double() / temperature)
    exponents, out = shifted.clone(), torch.empty_like(shifted)
    unit = chunks.exponentials(exponents, temperature, out)
    torch.testing.assert_close(out.double(), expected, rtol=RTOL, atol=0.0)
    assert unit == (math.log(2.0) if slow_exp else 1.0)
    torch.testing.assert_close(exponents * unit, shifted / temperature, rtol=RTOL, atol=0.0)
    chunks.exponentials(shifted, temperature, shifted)
    assert torch.equal(shifted, out)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_losses_and_gradients(slow_exp, temperature):
    generator = torch.Generator().manual_seed(1)
    student, teacher = 3.0 * torch.randn(2, 6, V, generator=generator)
    labels = torch.randint(V, (6,), generator=generator)
    support = student.topk(9).indices

    def run(student, teacher):
        leaf = student.clone().requires_grad_()
        log_q, entropy = score_teacher(teacher, support, temperature=temperature)
        losses = token_losses(
            leaf,
            labels,
            support_SK=support,
            teacher_log_probs_SK=log_q,
            temperature=temperature,
            with_entropy=True,
        )
        (losses.log_probs_N + 2.0 * losses.divergence_N - losses.entropy_N).sum().backward()
        return [tensor.detach().double() for tensor in (log_q, entropy, *losses, leaf.grad)]

    for got, expected in zip(run(student, teacher), run(student.double(), teacher.double()), strict=True):
        torch.testing.assert_close(got, expected, rtol=RTOL, atol=1e-6)

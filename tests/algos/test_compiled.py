"""The compiled passes, on the CPU's Inductor: same results as the plain ones.

Kernels and bytes: tests/scripts/test_count_kernels.py.
"""

import math

import pytest
import torch
from torch._inductor.utils import fresh_cache

from srpo_verl.algos import compiled_passes
from srpo_verl.functional import score_teacher, token_losses, topk_support

pytestmark = pytest.mark.slow

N, V, K = 12, 500, 9
# fp32 arithmetic in another order; a gradient is rounded once to bf16.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    compiled_passes.compiled.cache_clear()
    with fresh_cache():
        yield
    compiled_passes.compiled.cache_clear()


def run(dtype, compile_kernels, with_entropy, inplace, positions, temperature):
    generator = torch.Generator().manual_seed(2)
    student, teacher = 3.0 * torch.randn(2, N, V, generator=generator)
    student[:, -20:] = -math.inf
    student[2, :-20] += 100.0
    source, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    logits = source * 1
    index = torch.tensor([11, 0, 1, 2, 3, 7, 5, 9]) if positions else None
    distilled = torch.arange(N if index is None else len(index)) % 3 == 0
    support = topk_support(student.to(dtype) if index is None else student.to(dtype)[index], K)[distilled]
    rows = torch.arange(N) if index is None else index
    log_q, entropy = score_teacher(
        teacher, support, positions_N=rows[distilled], temperature=temperature, compile_kernels=compile_kernels
    )
    losses = token_losses(
        logits,
        torch.randint(V - 20, (len(rows),), generator=generator),
        positions_N=index,
        distilled_N=distilled,
        support_SK=support,
        teacher_log_probs_SK=log_q,
        with_entropy=with_entropy,
        temperature=temperature,
        inplace_backward=inplace,
        compile_kernels=compile_kernels,
    )
    total = (losses.log_probs_N * torch.linspace(-1, 1, len(rows))).sum() + losses.divergence_N.sum()
    total = total + losses.entropy_N.sum()
    (grad,) = torch.autograd.grad(total, logits)
    return [log_q, entropy, *(values.detach() for values in losses)], grad


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize(
    ("with_entropy", "inplace", "temperature"), [(False, True, 1.0), (True, False, 0.7), (True, True, 1.0)]
)
def test_same_results(dtype, positions, with_entropy, inplace, temperature):
    options = (with_entropy, inplace, positions, temperature)
    values, grad = run(dtype, False, *options)
    compiled_values, compiled_grad = run(dtype, True, *options)
    for plain, fused in zip(values, compiled_values, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(compiled_grad, grad, atol=2e-6, rtol=ROUNDING[dtype])

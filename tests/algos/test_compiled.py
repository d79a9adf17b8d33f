"""The compiled passes, on the CPU's Inductor: same results as the plain ones, one kernel each, and the bytes it moves.

Inductor writes C++ here and Triton on a GPU; what it fuses is decided before that.
"""

import math

import pytest
import torch
from torch._inductor import metrics
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


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "per_logit", "scalars"),
    [
        ("_sums", 2, 2),
        ("_sums_and_entropy", 2, 3),
        ("_gradient", 4, 2),
        ("_gradient_in_place", 4, 2),
        ("_entropy_gradient", 4, 4),
        ("_entropy_gradient_in_place", 4, 4),
    ],
)
def test_one_kernel_and_its_bytes(name, per_logit, scalars, dtype):
    """Bytes per logit: 2 are read, in a gradient 2 more written; beside them a few fp32 numbers per row."""
    rows, vocab = 8, 4096
    logits = torch.randn(rows, vocab).to(dtype)
    columns = list(torch.rand(5, rows, 1).unbind())
    arguments = {"_sums": 3, "_sums_and_entropy": 3}.get(name, scalars)
    out = [torch.empty_like(logits)] if name in ("_gradient", "_entropy_gradient") else []
    metrics.reset()
    compiled_passes.compiled(getattr(compiled_passes, name))(logits, *out, 1.0, *columns[:arguments])
    assert metrics.generated_kernel_count == 1
    assert metrics.num_bytes_accessed == pytest.approx(per_logit * rows * vocab, rel=0.01)


def test_any_number_of_rows_is_compiled_once():
    columns = list(torch.rand(2, 8, 1).unbind())
    metrics.reset()
    for rows in (8, 5, 3):
        logits, part = torch.randn(rows, 300), [column[:rows] for column in columns]
        compiled_passes.compiled(compiled_passes._gradient_in_place)(logits, 1.0, *part)
    assert metrics.generated_kernel_count == 1

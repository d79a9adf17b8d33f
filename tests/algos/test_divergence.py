"""Equation (3): the fused divergence against an eager float64 oracle, and its properties.

The oracle adds up bucket *probabilities* through a membership matrix and hands them to `torch.distributions`; autograd
differentiates it. It shares neither log-space arithmetic nor the analytic gradient with the code under test.
"""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from srpo_verl.functional import distillation_loss, score_teacher, topk_support
from tests.algos.recording import RecordSizes

ALPHAS = [0.0, 0.3, 0.5, 1.0]
SHAPES = [(3, 47, 10), (31, 123, 122), (31, 123, 123), (1, 2, 1), (2, 1, 1)]  # N, V, K
BOTH = pytest.mark.parametrize("tail", [True, False])


def oracle(student_logits, support, teacher_logits, alpha, tail, temperature=1.0):
    """Equation (3) from the two full distributions, one token at a time."""
    losses = []
    vocab = student_logits.shape[1]
    for z, ids, teacher_z in zip(student_logits, support, teacher_logits, strict=True):
        membership = torch.zeros(vocab, len(ids) + 1, dtype=torch.float64)
        membership[:, -1] = 1.0
        for bucket, token in enumerate(ids.tolist()):
            membership[token] = 0.0
            membership[token, bucket] = 1.0
        if not tail or len(ids) == vocab:
            membership = membership[:, :-1]
        # Categorical rescales to a sum of 1: a no-op with the tail, renormalisation over the support without.
        student = Categorical(probs=torch.softmax(z.double() / temperature, dim=-1) @ membership)
        teacher = Categorical(probs=torch.softmax(teacher_z.double() / temperature, dim=-1) @ membership)
        mixture = Categorical(probs=(1 - alpha) * student.probs + alpha * teacher.probs)
        if alpha == 0:
            losses.append(kl_divergence(teacher, student))
        elif alpha == 1:
            losses.append(kl_divergence(student, teacher))
        else:
            losses.append((1 - alpha) * kl_divergence(student, mixture) + alpha * kl_divergence(teacher, mixture))
    return torch.stack(losses)


def random_case(n, v, k, dtype=torch.float64, scale=2.0, seed=8):
    generator = torch.Generator().manual_seed(seed)
    student = (scale * torch.randn(n, v, generator=generator, dtype=torch.float64)).to(dtype)
    teacher = (scale * torch.randn(n, v, generator=generator, dtype=torch.float64)).to(dtype)
    cotangent = torch.randn(n, generator=generator, dtype=torch.float64)
    return student, teacher, topk_support(student, k), cotangent


def fused(student, support, teacher, cotangent, **options):
    """Values and gradient of `distillation_loss`."""
    leaf = student.detach().clone().requires_grad_()
    temperature = options.get("temperature", 1.0)
    log_q, _ = score_teacher(teacher, support, temperature=temperature)
    loss = distillation_loss(leaf, support, log_q, **options)
    (loss * cotangent.to(loss.dtype)).sum().backward()
    return loss.detach(), leaf.grad


def eager(student, support, teacher, cotangent, alpha, tail, temperature=1.0):
    """Values and gradient of the oracle."""
    leaf = student.detach().double().requires_grad_()
    loss = oracle(leaf, support, teacher, alpha, tail, temperature)
    (loss * cotangent).sum().backward()
    return loss.detach(), leaf.grad


@BOTH
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("n", "v", "k"), SHAPES)
def test_matches_the_oracle_in_float64(n, v, k, alpha, tail):
    student, teacher, support, cotangent = random_case(n, v, k)
    loss, grad = fused(student, support, teacher, cotangent, alpha=alpha, tail=tail, temperature=0.7)
    expected_loss, expected_grad = eager(student, support, teacher, cotangent, alpha, tail, 0.7)
    # float64 on both sides; the tails are 1 - sum on one and a sum on the other (absolute error 1e-16, divided by
    # tails that are down to 1e-4).
    torch.testing.assert_close(loss, expected_loss, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(grad, expected_grad, atol=1e-11, rtol=1e-11)


@BOTH
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [1, 4, 6])
def test_gradcheck(k, alpha, tail):
    student, teacher, support, _ = random_case(3, 6, k)
    log_q, _ = score_teacher(teacher, support)
    assert torch.autograd.gradcheck(
        lambda z: distillation_loss(z, support, log_q, alpha=alpha, tail=tail, temperature=1.3, chunk_size=2),
        student.requires_grad_(),
    )


# Relative error of one rounding of the gradient to the dtype of the logits; values are fp32 throughout.
GRAD_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@BOTH
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", GRAD_TOLERANCE)
def test_narrow_dtypes_compute_in_fp32(dtype, alpha, tail):
    student, teacher, support, cotangent = random_case(31, 123, 20, dtype)
    loss, grad = fused(student, support, teacher, cotangent, alpha=alpha, tail=tail)
    expected_loss, expected_grad = eager(student, support, teacher, cotangent, alpha, tail)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    # fp32 arithmetic on sums of at most 21 buckets with logs up to about 10.
    torch.testing.assert_close(loss.double(), expected_loss, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(grad.double(), expected_grad, atol=2e-6, rtol=GRAD_TOLERANCE[dtype])


@BOTH
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0, 300.0])
def test_not_negative_and_zero_at_equality(scale, alpha, tail):
    student, teacher, support, cotangent = random_case(31, 123, 10, torch.float32, scale)
    loss, grad = fused(student, support, teacher, cotangent, alpha=alpha, tail=tail)
    assert (loss >= 0).all()
    assert grad.isfinite().all()
    loss, grad = fused(student, support, student, cotangent, alpha=alpha, tail=tail)
    # The teacher's tail is known to 1.2e-7 (fp32); a divergence is of second order in that, forward KL of first.
    assert (loss <= 1e-6).all()
    assert grad.abs().max() <= 2e-6


@pytest.mark.parametrize("alpha", ALPHAS)
def test_zero_only_at_equality(alpha):
    student, teacher, support, cotangent = random_case(31, 123, 10)
    assert (fused(student, support, teacher, cotangent, alpha=alpha)[0] > 1e-3).all()


def test_jensen_shannon_is_symmetric_and_bounded_by_ln_2():
    student, teacher, _, cotangent = random_case(31, 123, 123, scale=30.0)
    support = topk_support(student, None)
    loss, _ = fused(student, support, teacher, cotangent, alpha=0.5)
    swapped, _ = fused(teacher, support, student, cotangent, alpha=0.5)
    torch.testing.assert_close(loss, swapped, atol=1e-12, rtol=0)  # float64
    assert (loss <= math.log(2) + 1e-12).all()  # float64
    assert loss.max() > 0.6  # near the bound: the case is not trivial


def test_known_values():
    # Student (1/2, 1/2), teacher (3/4, 1/4), both tokens in the support.
    student, support = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0, 1]])
    log_q = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert float(distillation_loss(student, support, log_q, alpha=0)) == pytest.approx(forward, abs=1e-15)
    assert float(distillation_loss(student, support, log_q, alpha=1)) == pytest.approx(reverse, abs=1e-15)
    # One token in the support: with the tail the same two buckets, without it nothing is left to tell apart.
    args = student, support[:, :1], log_q[:, :1]
    assert float(distillation_loss(*args, alpha=0)) == pytest.approx(forward, abs=1e-15)
    assert float(distillation_loss(*args, alpha=0, tail=False)) == 0.0


@BOTH
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 31, 1000])
def test_chunk_size_changes_nothing(chunk_size, tail):
    student, teacher, support, cotangent = random_case(31, 123, 10, torch.float32)
    whole = fused(student, support, teacher, cotangent, tail=tail)
    chunked = fused(student, support, teacher, cotangent, tail=tail, chunk_size=chunk_size)
    for a, b in zip(whole, chunked, strict=True):
        # Rows are independent; a vectorised sum may be split differently for another number of rows.
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_full_vocabulary_is_the_same_with_and_without_tail(alpha):
    student, teacher, _, cotangent = random_case(3, 47, 47, torch.float32)
    support = topk_support(student, None)
    with_tail = fused(student, support, teacher, cotangent, alpha=alpha, tail=True)
    without = fused(student, support, teacher, cotangent, alpha=alpha, tail=False)
    assert torch.equal(with_tail[0], without[0])
    assert torch.equal(with_tail[1], without[1])
    assert with_tail[1].isfinite().all()


def test_gradient_rows_sum_to_zero_and_tail_tokens_share_their_buckets():
    student, teacher, support, cotangent = random_case(31, 123, 10)
    _, grad = fused(student, support, teacher, cotangent)
    assert grad.sum(dim=-1).abs().max() < 1e-14  # adding a constant to the logits changes nothing; float64
    off = torch.ones_like(student, dtype=torch.bool).scatter(1, support, False)
    ratio = (grad / torch.softmax(student, dim=-1))[off].view(31, -1)
    # All tokens of the tail bucket are pushed by the same factor of their probability.
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-12, rtol=1e-10)
    _, grad = fused(student, support, teacher, cotangent, tail=False)
    assert torch.equal(grad[off], torch.zeros(int(off.sum()), dtype=torch.float64))


@BOTH
@pytest.mark.parametrize("alpha", ALPHAS)
def test_extreme_tails_match_the_oracle(alpha, tail):
    # Ten tokens far above the rest: student tails of 1e-13 to 1e-2, as a confident model has them.
    student, teacher, _, cotangent = random_case(6, 47, 10)
    boost = torch.linspace(8.0, 34.0, 6, dtype=torch.float64)[:, None]
    student[:, :10] += boost
    teacher[:, :10] += 6.0  # the teacher's tail stays resolvable in fp32
    support = topk_support(student, 10)
    loss, grad = fused(student.float(), support, teacher.float(), cotangent, alpha=alpha, tail=tail)
    expected_loss, expected_grad = eager(student.float(), support, teacher.float(), cotangent, alpha, tail)
    # fp32; forward KL multiplies the 1e-7 of the teacher's tail by a log-ratio of up to 30.
    torch.testing.assert_close(loss.double(), expected_loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad.double(), expected_grad, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_unresolvable_tails_cost_nothing(alpha):
    # Both tails are below the resolution of fp32, the teacher's sum may even exceed 1.
    student = torch.full((4, 50), -40.0)
    student[:, :3] = torch.tensor([2.0, 1.0, 0.0])
    support = topk_support(student, 3)
    log_q, _ = score_teacher(student, support)
    for shift in (0.0, 2e-7):
        leaf = student.clone().requires_grad_()
        loss = distillation_loss(leaf, support, log_q + shift, alpha=alpha)
        loss.sum().backward()
        assert (loss >= 0).all()
        assert loss.max() <= 1e-6
        assert leaf.grad.abs().max() <= 1e-6


@BOTH
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [3, 8, 11, 14])
def test_masked_vocabulary_of_both_changes_nothing(k, alpha, tail):
    # 8 live tokens and 6 of -inf. K = 8: an empty tail; K = 11, 14: masked tokens in the support too.
    live, teacher, _, cotangent = random_case(5, 8, 1)
    pad = torch.full((5, 6), -math.inf, dtype=torch.float64)
    masked_student, masked_teacher = torch.cat([live, pad], dim=1), torch.cat([teacher, pad], dim=1)
    loss, grad = fused(
        masked_student, topk_support(masked_student, k), masked_teacher, cotangent, alpha=alpha, tail=tail
    )
    expected_loss, expected_grad = fused(
        live, topk_support(live, min(k, 8)), teacher, cotangent, alpha=alpha, tail=tail
    )
    torch.testing.assert_close(loss, expected_loss, atol=1e-12, rtol=1e-12)  # float64
    torch.testing.assert_close(grad[:, :8], expected_grad, atol=1e-12, rtol=1e-12)
    assert torch.equal(grad[:, 8:], torch.zeros_like(pad))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_token_only_one_side_masks_stays_finite(alpha):
    student = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -math.inf]])
    support = torch.arange(3).expand(2, 3)
    log_q, _ = score_teacher(teacher, support)
    loss = distillation_loss(student, support, log_q, alpha=alpha)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert (loss > 0.05).all()
    assert student.grad.isfinite().all()
    assert student.grad[0, 2] == 0.0
    if alpha == 0:  # masked by the student, probability 1/3 for the teacher: 10^4 / 3 nats; fp32 at 3333
        assert float(loss[0].detach()) == pytest.approx(
            2 / 3 * math.log(2 / 3) + (math.log(1 / 3) + 1e4) / 3, abs=1e-3
        )


def test_saves_nothing_of_the_size_of_the_logits_but_the_logits():
    student, teacher, support, _ = random_case(40, 200, 3, torch.bfloat16)
    log_q, _ = score_teacher(teacher, support)
    leaf, saved = student.requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = distillation_loss(leaf, support, log_q, chunk_size=4)
    large = [t for t in saved if t.numel() > 40 * 4]
    assert [t.data_ptr() for t in large] == [leaf.data_ptr()]
    with RecordSizes() as record:
        loss.sum().backward()
        distillation_loss(leaf, support, log_q, chunk_size=4)
    assert record.largest(torch.float32) == 4 * 200
    assert record.largest(torch.bfloat16) == 40 * 200  # the gradient


def test_gradient_reaches_only_the_student():
    student, teacher, support, _ = random_case(3, 11, 4)
    log_q = score_teacher(teacher, support)[0].requires_grad_()
    loss = distillation_loss(student.requires_grad_(), support, log_q)
    loss.sum().backward()
    assert student.grad.abs().sum() > 0
    assert log_q.grad is None
    assert not distillation_loss(student.detach(), support, log_q).requires_grad


def test_int32_support_and_strided_logits():
    student, teacher, support, cotangent = random_case(6, 20, 4)
    expected = fused(student, support, teacher, cotangent)
    wide = torch.stack([student, student], dim=-1)[..., 0]  # stride 2 along the vocabulary
    assert not wide.is_contiguous()
    for a, b in zip(fused(wide, support.int(), teacher, cotangent), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=0)


@BOTH
def test_no_tokens_is_attached(tail):
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = distillation_loss(logits, torch.zeros(0, 2).long(), torch.zeros(0, 2), tail=tail)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert logits.grad.shape == (0, 5)


@BOTH
@pytest.mark.parametrize(
    ("bad_row", "what"),
    [([math.nan, 0.0, 0.0], "NaN"), ([math.inf, 0.0, 0.0], r"\+inf"), ([-math.inf] * 3, "only -inf")],
)
def test_non_finite_student_rows_are_named(bad_row, what, tail):
    student = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -math.inf], bad_row])
    with pytest.raises(ValueError, match=f"student_logits.*row 2 holds {what}"):
        distillation_loss(student, torch.zeros(3, 1).long(), torch.full((3, 1), -1.0), tail=tail, chunk_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -0.1}, "got -0.1"),
        ({"alpha": math.nan}, "got nan"),
        ({"temperature": -1.0}, "got -1.0"),
        ({"chunk_size": 0}, "got 0"),
        ({"teacher_log_probs_NK": torch.zeros(2, 3)}, r"\(2, 3\)"),
        ({"support_NK": torch.tensor([[0, 5], [1, 2]])}, "from 0 to 5"),
        ({"teacher_log_probs_NK": torch.tensor([[-1.0, -1.0], [2.0, 0.0]])}, r"row 1 sum to a probability of 8\.38"),
        ({"teacher_log_probs_NK": torch.tensor([[-1.0, math.nan], [-1.0, -1.0]])}, "row 0 .* nan"),
        ({"teacher_log_probs_NK": torch.full((2, 2), -math.inf), "tail": False}, r"row 0 .* 0\.0"),
    ],
)
def test_errors_name_the_value(change, message):
    arguments = {
        "student_logits_NV": torch.zeros(2, 5),
        "support_NK": torch.tensor([[0, 1], [1, 2]]),
        "teacher_log_probs_NK": torch.full((2, 2), -1.0),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        distillation_loss(**arguments)

"""The fused pass over the student's logits: log-probabilities, divergence and entropy, in values and gradients.

The oracle takes `log_softmax` in float64 for log-probabilities and entropy and the bucket probabilities of
`test_divergence` for the divergence; autograd differentiates it. It knows no shift, no sweep and no analytic gradient.
"""

import math
from dataclasses import dataclass

import pytest
import torch

from srpo_verl.functional import TokenLosses, distillation_loss, score_teacher, token_losses, topk_support
from tests.algos.recording import RecordSizes
from tests.algos.test_divergence import ALPHAS, BOTH, oracle

# Both sides in float64; a tail is 1 - sum here and a sum there (1e-16, divided by tails down to 1e-4).
EXACT = {"atol": 1e-11, "rtol": 1e-11}
EXACT_BOTH = pytest.mark.parametrize("with_entropy", [True, False])


@dataclass
class Case:
    """Logits of M rows, and what is asked of N of them."""

    logits: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor | None
    distilled: torch.Tensor
    support: torch.Tensor
    teacher: torch.Tensor
    """The teacher's logits of the distilled tokens."""
    upstream: torch.Tensor
    """Gradients of log-probability, divergence and entropy, one row each."""

    def rows(self, logits):
        return logits if self.positions is None else logits[self.positions]


def make(n=13, v=61, k=9, dtype=torch.float64, share=0.5, positions=None, seed=3, scale=2.0, masked=0, shift=0.0):
    """`masked` tokens at the end of the vocabulary are -inf; `positions`: None, "permuted" or "partial"."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = scale * torch.randn(2, n, v, generator=generator, dtype=torch.float64)
    if masked:
        logits[:, -masked:] = teacher[:, -masked:] = -math.inf
    logits, teacher = (logits + shift).to(dtype), (teacher + shift).to(dtype)
    index = None
    if positions is not None:
        index = torch.randperm(n, generator=generator)[: n if positions == "permuted" else n // 2]
        n = len(index)
    distilled = torch.rand(n, generator=generator) < share
    rows = logits if index is None else logits[index]
    return Case(
        logits=logits,
        labels=torch.randint(v - masked, (n,), generator=generator),
        positions=index,
        distilled=distilled,
        support=topk_support(rows[distilled], k),
        teacher=teacher[:n][distilled],
        upstream=torch.randn(3, n, generator=generator, dtype=torch.float64),
    )


def fused(case, with_entropy=True, labels=True, temperature=1.0, logits=None, **options):
    """`token_losses` and the gradient of all its outputs at once."""
    leaf = case.logits.detach().clone().requires_grad_() if logits is None else logits
    log_q, _ = score_teacher(case.teacher, case.support, temperature=temperature)
    losses = token_losses(
        leaf,
        case.labels if labels else None,
        positions_N=case.positions,
        distilled_N=case.distilled,
        support_SK=case.support,
        teacher_log_probs_SK=log_q,
        with_entropy=with_entropy,
        temperature=temperature,
        **options,
    )
    g, f, h = case.upstream.to(losses.divergence_N.dtype)
    total = (losses.divergence_N * f).sum()
    total = total + (losses.log_probs_N * g).sum() if labels else total
    total = total + (losses.entropy_N * h).sum() if with_entropy else total
    (grad,) = torch.autograd.grad(total, leaf)
    return TokenLosses(*(values.detach() for values in losses)), grad


def eager(case, with_entropy=True, labels=True, temperature=1.0, alpha=0.5, tail=True):
    """Values and gradient of the oracle."""
    leaf = case.logits.detach().double().requires_grad_()
    log_p = torch.log_softmax(case.rows(leaf) / temperature, dim=-1)
    log_probs = log_p[torch.arange(len(log_p)), case.labels]
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(dim=-1)
    divergence = torch.zeros(len(log_p), dtype=torch.float64)
    if case.distilled.any():
        student = case.rows(leaf)[case.distilled]
        divergence[case.distilled] = oracle(student, case.support, case.teacher, alpha, tail, temperature)
    g, f, h = case.upstream
    total = (log_probs * g * labels + divergence * f + entropy * h * with_entropy).sum()
    total.backward()
    return TokenLosses(log_probs.detach(), divergence.detach(), entropy.detach()), leaf.grad


def assert_matches(case, values=EXACT, gradient=EXACT, with_entropy=True, labels=True, **options):
    losses, grad = fused(case, with_entropy, labels, **options)
    options.pop("chunk_size", None)
    expected, expected_grad = eager(case, with_entropy, labels, **options)
    for name in TokenLosses._fields:
        is_there = {"log_probs_N": labels, "entropy_N": with_entropy}.get(name, True)
        result = getattr(losses, name)
        if is_there:
            torch.testing.assert_close(result.double(), getattr(expected, name), **values)
        else:
            assert result.shape == (0,)
    torch.testing.assert_close(grad.double(), expected_grad, **gradient)
    return losses, grad


# --- values and gradients -------------------------------------------------------------------------------------------


@EXACT_BOTH
@BOTH
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("n", "v", "k"), [(13, 61, 9), (5, 12, 12), (3, 2, 1), (1, 1, 1)])
def test_matches_the_oracle(n, v, k, alpha, tail, with_entropy):
    # K = V among them: the full vocabulary, without a rest.
    case = make(n, v, k)
    assert_matches(case, alpha=alpha, tail=tail, with_entropy=with_entropy, temperature=0.7)


@EXACT_BOTH
@BOTH
@pytest.mark.parametrize("inside", [True, False])
def test_labels_inside_and_outside_of_the_support(inside, tail, with_entropy):
    case = make(share=1.0)
    off = torch.ones_like(case.logits, dtype=torch.bool).scatter(1, case.support, False).nonzero()
    outside = off[torch.arange(0, len(off), 52), 1]  # 52 of 61 tokens of every row are off the support
    case.labels = case.support[:, 3] if inside else outside
    assert ((case.support == case.labels[:, None]).any(dim=-1) == inside).all()
    assert_matches(case, tail=tail, with_entropy=with_entropy)


@EXACT_BOTH
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("positions", [None, "permuted", "partial"])
def test_any_selection_of_tokens(positions, share, with_entropy):
    case = make(share=share, positions=positions)
    assert 0 < case.distilled.sum() < len(case.distilled) or share in (0.0, 1.0)
    for labels in (True, False):
        losses, grad = assert_matches(case, with_entropy=with_entropy, labels=labels, chunk_size=4)
        assert (losses.divergence_N[~case.distilled] == 0).all()
        named = torch.zeros(len(grad), dtype=torch.bool)
        named[slice(None) if positions is None else case.positions] = True
        assert torch.equal(grad[~named], torch.zeros_like(grad[~named]))
        assert labels is False or (grad[named] != 0).any(dim=-1).all()


@pytest.mark.parametrize("shape", [(0, 5), (4, 5)])
def test_no_tokens(shape):
    logits = torch.randn(shape, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    for support in (None, nothing.view(0, 2)):
        losses = token_losses(
            logits,
            nothing,
            positions_N=nothing,
            support_SK=support,
            teacher_log_probs_SK=None if support is None else torch.zeros(0, 2),
            with_entropy=True,
        )
        assert [values.shape for values in losses] == [(0,)] * 3
        # Attached: a batch without tokens takes part in the backward pass.
        (grad,) = torch.autograd.grad(sum(values.sum() for values in losses), logits)
        assert torch.equal(grad, torch.zeros(shape))


@BOTH
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize(
    ("k", "masked"),
    [(9, 20), (9, 51), (9, 52), (12, 52)],  # the last two: nothing but -inf off the support; and some of it on it
)
def test_masked_vocabulary(k, masked, temperature, tail):
    case = make(k=k, masked=masked)
    case.upstream *= 10.0  # -inf times a large upstream gradient is no more than -inf times a small one
    wide = {"atol": 1e-10, "rtol": 1e-11}
    losses, grad = assert_matches(case, wide, wide, tail=tail, temperature=temperature)
    assert all(values.isfinite().all() for values in losses)
    assert torch.equal(grad[:, -masked:], torch.zeros_like(grad[:, -masked:]))
    narrow = make(k=k, masked=masked, dtype=torch.float32)
    narrow.upstream *= 10.0
    # fp32 on logits up to about 8 / 0.4, times an upstream gradient of up to 30.
    assert_matches(
        narrow, {"atol": 1e-5, "rtol": 1e-5}, {"atol": 3e-4, "rtol": 1e-4}, tail=tail, temperature=temperature
    )


def test_a_masked_label_has_probability_zero():
    case = make(share=0.5, masked=20)
    case.labels[:] = 50
    losses, grad = fused(case, with_entropy=False)
    assert (losses.log_probs_N == -math.inf).all()
    assert grad.isfinite().all()


# --- precision ------------------------------------------------------------------------------------------------------

# The logits are read exactly and all arithmetic is fp32: logits up to about 8 and sums over 200 tokens leave errors of
# some 1e-6. A gradient is rounded once to the dtype of the logits: a relative 2^-24, 2^-11 (above 6e-5) and 2^-8.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@EXACT_BOTH
@BOTH
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_narrow_dtypes_compute_in_fp32(dtype, alpha, tail, with_entropy):
    case = make(31, 200, 20, dtype)
    fp32 = {"atol": 1e-5, "rtol": 1e-5}
    rounded = {"atol": 1e-5, "rtol": 1e-5 + ROUNDING[dtype]}
    losses, grad = assert_matches(case, fp32, rounded, alpha=alpha, tail=tail, with_entropy=with_entropy)
    assert {values.dtype for values in losses} == {torch.float32}
    assert grad.dtype == dtype
    # A relative error over the whole tensor, as the limits of docs/performance.md are stated.
    _, expected = eager(case, alpha=alpha, tail=tail, with_entropy=with_entropy)
    assert (grad.double() - expected).norm() / expected.norm() < (1e-5 if dtype == torch.float32 else 2e-2)


@EXACT_BOTH
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_round_nothing(shift, temperature, with_entropy):
    # The logits themselves are rounded to 1e-3; the oracle reads the rounded ones. Sums of shift and logsumexp would
    # be wrong by 5e-4.
    case = make(31, 200, 20, torch.float32, shift=shift)
    fp32 = {"atol": 2e-5, "rtol": 1e-5}
    assert_matches(case, fp32, fp32, temperature=temperature, with_entropy=with_entropy)


@EXACT_BOTH
def test_a_support_far_below_the_rest(with_entropy):
    # The support need not hold the largest logit: the teacher's tokens, or those of another step.
    case = make(share=1.0)
    case.support = case.logits.topk(9, largest=False).indices
    case.logits.scatter_(1, case.support, -30.0 + 0.1 * torch.arange(9.0, dtype=torch.float64).expand(13, 9))
    case.teacher.scatter_add_(1, case.support, torch.full((13, 9), 3.0, dtype=torch.float64))
    assert_matches(case, with_entropy=with_entropy)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_a_support_far_above_the_rest(with_entropy):
    # exp of a support logit relative to the rest overflows fp32; it is no part of the rest.
    case = make(dtype=torch.float32, share=1.0)
    case.logits.scatter_add_(1, case.support, torch.full((13, 9), 120.0))
    fp32 = {"atol": 2e-5, "rtol": 1e-5}
    assert_matches(case, fp32, {"atol": 2e-4, "rtol": 1e-4}, with_entropy=with_entropy)


@BOTH
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [4, 8])
def test_gradcheck(k, alpha, tail):
    case = make(5, 8, k, positions="permuted")
    log_q, _ = score_teacher(case.teacher, case.support)
    assert torch.autograd.gradcheck(
        lambda z: token_losses(
            z,
            case.labels,
            positions_N=case.positions,
            distilled_N=case.distilled,
            support_SK=case.support,
            teacher_log_probs_SK=log_q,
            alpha=alpha,
            tail=tail,
            temperature=1.3,
            with_entropy=True,
            chunk_size=2,
        ),
        case.logits.requires_grad_(),
    )


# --- equal to the single functions ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equals_distillation_loss(alpha, tail):
    case = make(share=1.0)
    log_q, _ = score_teacher(case.teacher, case.support)
    leaf = case.logits.clone().requires_grad_()
    alone = distillation_loss(leaf, case.support, log_q, alpha=alpha, tail=tail)
    (alone * case.upstream[1]).sum().backward()
    case.upstream[[0, 2]] = 0.0
    losses, grad = fused(case, alpha=alpha, tail=tail)
    torch.testing.assert_close(losses.divergence_N, alone.detach(), **EXACT)
    torch.testing.assert_close(grad, leaf.grad, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torchs_cross_entropy(dtype):
    case = make(31, 200, dtype=dtype)
    leaf, other = (case.logits.clone().requires_grad_() for _ in range(2))
    losses = token_losses(leaf, case.labels)
    assert (losses.divergence_N == 0).all()
    assert losses.entropy_N.shape == (0,)
    nll = torch.nn.functional.cross_entropy(other, case.labels, reduction="none")
    close = EXACT if dtype == torch.float64 else {"atol": 2e-6, "rtol": 1e-6}  # fp32 at about 10
    torch.testing.assert_close(losses.log_probs_N, -nll, **close)
    (losses.log_probs_N * case.upstream[0].to(dtype)).sum().backward()
    (-nll * case.upstream[0].to(dtype)).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, **close)


# --- how it is computed ---------------------------------------------------------------------------------------------


@EXACT_BOTH
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 1000])
def test_chunk_size_changes_nothing(chunk_size, with_entropy):
    case = make(31, 123, 10, torch.float32, positions="permuted")
    whole, whole_grad = fused(case, with_entropy)
    chunked, chunked_grad = fused(case, with_entropy, chunk_size=chunk_size)
    # Rows are independent; a vectorised sum may be split differently for another number of rows.
    for a, b in zip((*whole, whole_grad), (*chunked, chunked_grad), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [None, "permuted", "partial"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_inplace_backward_writes_the_same_gradient_into_the_logits(share, positions, dtype):
    case = make(dtype=dtype, share=share, positions=positions)
    case.upstream[:, 0] = 0.0  # an idle token among them
    for with_entropy in (True, False):
        _, expected = fused(case, with_entropy, chunk_size=3)
        source = case.logits.clone().requires_grad_()
        logits = source * 1  # what a layer makes, and nothing else needs
        _, grad = fused(case, with_entropy, logits=logits, chunk_size=3, inplace_backward=True)
        assert torch.equal(grad, expected)
        assert grad.data_ptr() == logits.data_ptr()


@pytest.mark.parametrize("how", ["other operation", "twice"])
def test_inplace_backward_raises_where_something_else_needs_the_logits(how):
    case = make(3)
    logits = case.logits.requires_grad_() * 1
    losses = token_losses(logits, case.labels, inplace_backward=True)
    if how == "other operation":
        # Reversed order of the graph: the square, which saves the logits, is differentiated last.
        logits.square()
        total = losses.log_probs_N.sum()
        total.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (logits.square().sum() + total).backward()
    else:
        losses.log_probs_N.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            losses.log_probs_N.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [None, "partial"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_tokens_without_an_upstream_gradient_get_exactly_zero(share, positions, dtype):
    case = make(20, share=share, positions=positions, dtype=dtype)
    _, full = fused(case, chunk_size=3)
    idle = torch.arange(len(case.labels)) % 3 == 0
    case.upstream[:, idle] = 0.0
    _, grad = fused(case, chunk_size=3)
    rows = torch.arange(len(idle)) if case.positions is None else case.positions
    assert torch.equal(grad[rows[idle]], torch.zeros_like(grad[rows[idle]]))
    # The others as before: a vectorised sum may be split differently for another number of rows (see above).
    torch.testing.assert_close(
        grad[rows[~idle]], full[rows[~idle]], atol=2e-6, rtol=ROUNDING[dtype] if dtype == torch.bfloat16 else 1e-6
    )
    # A token that is idle in the divergence only keeps the gradient of its log-probability.
    case.upstream[0] = 1.0
    assert_matches(case, {"atol": 1e-5, "rtol": 1e-5}, {"atol": 1e-5, "rtol": 1e-5 + ROUNDING[dtype]})


def test_all_idle_visits_nothing():
    case = make(dtype=torch.float32)
    case.upstream.zero_()
    leaf = case.logits.clone().requires_grad_()
    losses = token_losses(leaf, case.labels, with_entropy=True)
    with RecordSizes() as record:
        (losses.log_probs_N.sum() * 0.0 + losses.entropy_N.sum() * 0.0).backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    assert record.largest(torch.float32) == leaf.numel()  # the gradient, of zeros
    assert torch.equal(fused(case)[1], torch.zeros_like(leaf))


@EXACT_BOTH
@pytest.mark.parametrize("positions", [None, "permuted"])
@pytest.mark.parametrize("inplace", [False, True])
def test_holds_nothing_of_the_size_of_the_logits_but_the_gradient(inplace, positions, with_entropy):
    case = make(40, 200, 3, torch.bfloat16, positions=positions)
    case.upstream[:, :2] = 0.0
    logits = case.logits.requires_grad_() * 1
    log_q, _ = score_teacher(case.teacher, case.support)
    saved = []
    with (
        RecordSizes() as record,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        losses = token_losses(
            logits,
            case.labels,
            positions_N=case.positions,
            distilled_N=case.distilled,
            support_SK=case.support,
            teacher_log_probs_SK=log_q,
            with_entropy=with_entropy,
            chunk_size=4,
            inplace_backward=inplace,
        )
    assert record.largest(torch.bfloat16) <= 4 * 200
    large = [t for t in saved if t.numel() > 40 * 4]
    assert [t.data_ptr() for t in large] == [logits.data_ptr()]
    total = sum((values * u.float()).sum() for values, u in zip(losses, case.upstream, strict=True) if len(values))
    with RecordSizes() as record:
        (grad,) = torch.autograd.grad(total, logits)
    assert grad.abs().sum() > 0
    assert record.largest(torch.bfloat16) == (4 * 200 if inplace else 40 * 200)
    assert record.largest(torch.float32) == 4 * 200


def test_integer_dtypes_and_strided_logits():
    case = make(share=0.5, positions="permuted")
    expected, expected_grad = fused(case)
    case.support, case.labels, case.positions = case.support.int(), case.labels.int(), case.positions.int()
    wide = torch.stack([case.logits, case.logits], dim=-1)[..., 0]  # stride 2 along the vocabulary
    assert not wide.is_contiguous()
    losses, grad = fused(case, logits=wide.requires_grad_())
    for a, b in zip((*losses, grad), (*expected, expected_grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=0)


def test_gradient_reaches_only_the_student_and_once():
    case = make(share=1.0)
    log_q = score_teacher(case.teacher, case.support)[0].requires_grad_()
    leaf = case.logits.requires_grad_()
    options = {"support_SK": case.support, "teacher_log_probs_SK": log_q}
    losses = token_losses(leaf, case.labels, **options)
    (grad,) = torch.autograd.grad(losses.divergence_N.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    assert log_q.grad is None
    assert not token_losses(leaf.detach(), case.labels, **options).divergence_N.requires_grad


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad_row", "what"),
    [([math.nan, 0.0, 0.0], "NaN"), ([0.0, 0.0, math.inf], r"\+inf"), ([-math.inf] * 3, "only -inf")],
)
@pytest.mark.parametrize("distilled", [True, False])
@BOTH
def test_non_finite_rows_are_named(bad_row, what, distilled, tail):
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -math.inf], bad_row])
    mask = torch.full((3,), distilled)
    s = int(mask.sum())
    with pytest.raises(ValueError, match=f"student_logits.*row 2 holds {what} .1 bad rows"):
        token_losses(
            logits,
            torch.zeros(3).long(),
            distilled_N=mask,
            support_SK=torch.zeros(s, 1).long(),
            teacher_log_probs_SK=torch.full((s, 1), -1.0),
            tail=tail,
            chunk_size=2,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_logits_MV": torch.zeros(2, 3, 4)}, r"\(2, 3, 4\)"),
        ({"student_logits_MV": torch.zeros(4, 5).long()}, "int64"),
        ({"labels_N": torch.zeros(4).long()}, r"labels_N .*\(3,\).*\(4,\)"),
        ({"labels_N": torch.tensor([0, 5, 1])}, r"labels_N .*\[0, 5\).*from 0 to 5"),
        ({"labels_N": torch.zeros(3)}, "labels_N .*float32"),
        ({"positions_N": torch.tensor([[0, 1, 2]])}, r"positions_N .*\(1, 3\)"),
        ({"positions_N": torch.tensor([0, 1, 4])}, r"positions_N .*\[0, 4\).*from 0 to 4"),
        ({"positions_N": torch.tensor([-1, 1, 2])}, r"positions_N .*from -1 to 2"),
        ({"distilled_N": torch.tensor([True, False])}, r"distilled_N .*\(3,\).*\(2,\)"),
        ({"distilled_N": torch.tensor([1, 1, 0])}, "distilled_N .*int64"),
        ({"distilled_N": torch.tensor([True, False, False])}, r"support_SK .*\(1, K\).*\(2, 2\)"),
        ({"support_SK": torch.tensor([[0, 5], [1, 2]])}, "support_SK .*from 0 to 5"),
        ({"support_SK": torch.tensor([[0, 1], [2, 2]])}, "support_SK .*row 1 holds 2 twice"),
        ({"teacher_log_probs_SK": torch.zeros(2, 3)}, r"teacher_log_probs_SK .*\(2, 2\).*\(2, 3\)"),
        ({"teacher_log_probs_SK": None}, "teacher_log_probs_SK .*None"),
        ({"teacher_log_probs_SK": torch.zeros(2, 2).long()}, "teacher_log_probs_SK .*int64"),
        ({"teacher_log_probs_SK": torch.tensor([[-1.0, -1.0], [2.0, 0.0]])}, r"row 1 sum to a probability of 8\.38"),
        ({"alpha": 1.1}, "alpha .*got 1.1"),
        ({"temperature": 0.0}, "temperature .*got 0.0"),
        ({"chunk_size": 0}, "chunk_size .*got 0"),
    ],
)
def test_errors_name_the_value(change, message):
    arguments = {
        "student_logits_MV": torch.zeros(4, 5),
        "labels_N": torch.tensor([0, 1, 2]),
        "positions_N": torch.tensor([3, 1, 0]),
        "distilled_N": torch.tensor([True, False, True]),
        "support_SK": torch.tensor([[0, 1], [1, 2]]),
        "teacher_log_probs_SK": torch.full((2, 2), -1.0),
        **change,
    }
    logits, labels = arguments.pop("student_logits_MV"), arguments.pop("labels_N")
    with pytest.raises(ValueError, match=message):
        token_losses(logits, labels, **arguments)

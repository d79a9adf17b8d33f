"""Support, teacher log-probabilities and full-vocabulary entropy."""

import math

import pytest
import torch

from srpo_verl.functional import score_teacher, topk_support
from tests.algos.recording import RecordSizes

SHAPES = [(3, 47, 10), (31, 123, 123), (1, 1, 1), (47, 31, 1)]  # N, V, K


def random_logits(n, v, dtype=torch.float64, scale=3.0, seed=6):
    return (scale * torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def python_scores(row, temperature):
    """Entropy and log-probabilities of one row of finite or -inf logits, in plain Python floats."""
    row = [z / temperature for z in row]
    log_total = max(row) + math.log(math.fsum(math.exp(z - max(row)) for z in row))
    log_probs = [z - log_total for z in row]
    return log_probs, -math.fsum(math.exp(lp) * lp for lp in log_probs if lp > -math.inf)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize(("n", "v", "k"), SHAPES)
def test_matches_plain_python(n, v, k, temperature):
    logits = random_logits(n, v)
    support = topk_support(random_logits(n, v, seed=7), k)
    log_probs, entropy = score_teacher(logits, support, temperature=temperature)
    assert log_probs.shape == (n, k)
    for i, row in enumerate(logits.tolist()):
        expected, expected_entropy = python_scores(row, temperature)
        # float64 sums over at most 123 terms.
        assert log_probs[i].tolist() == pytest.approx([expected[j] for j in support[i].tolist()], abs=1e-12)
        assert float(entropy[i]) == pytest.approx(expected_entropy, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_give_fp32_of_the_same_logits(dtype):
    logits = random_logits(31, 123, dtype)
    support = topk_support(logits, 20)
    log_probs, entropy = score_teacher(logits, support)
    exact_log_probs, exact_entropy = score_teacher(logits.double(), support)
    assert log_probs.dtype == entropy.dtype == torch.float32
    # The logits are read exactly; only fp32 arithmetic on numbers up to about 20 remains.
    torch.testing.assert_close(log_probs.double(), exact_log_probs, atol=4e-6, rtol=0)
    torch.testing.assert_close(entropy.double(), exact_entropy, atol=4e-6, rtol=0)


def test_entropy_is_over_the_full_vocabulary_not_the_support():
    logits = torch.zeros(2, 1000)
    _, entropy = score_teacher(logits, topk_support(logits, 5))
    # ln 1000, in nats; a support of 5 plus a tail bucket would give 0.06. fp32 resolution at 7.
    torch.testing.assert_close(entropy, torch.full((2,), math.log(1000)), atol=1e-6, rtol=0)


def test_large_logits_and_a_certain_teacher():
    logits = torch.tensor([[1e4, 1e4, 0.0], [3e38, -3e38, 0.0], [-1e30, -1e30, -1e30]])
    log_probs, entropy = score_teacher(logits, topk_support(logits, 3))
    torch.testing.assert_close(entropy, torch.tensor([math.log(2), 0.0, math.log(3)]), atol=1e-6, rtol=0)
    torch.testing.assert_close(log_probs[:, 0], -entropy, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masked_vocabulary_has_probability_zero(dtype):
    logits = random_logits(4, 12, dtype)
    masked = torch.cat([logits, torch.full((4, 5), -math.inf, dtype=dtype)], dim=1)
    support = torch.arange(12).expand(4, 12)
    log_probs, entropy = score_teacher(logits, support)
    log_probs_masked, entropy_masked = score_teacher(masked, support)
    torch.testing.assert_close(log_probs_masked, log_probs, atol=1e-6, rtol=0)  # order of the sum only
    torch.testing.assert_close(entropy_masked, entropy, atol=1e-6, rtol=0)
    on_mask, _ = score_teacher(masked, torch.full((4, 1), 14))
    assert on_mask.flatten().tolist() == [-math.inf] * 4


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 31, 1000])
def test_chunk_size_changes_nothing(chunk_size):
    logits = random_logits(31, 123, torch.bfloat16)
    support = topk_support(logits, 9)
    for whole, chunked in zip(
        score_teacher(logits, support), score_teacher(logits, support, chunk_size=chunk_size), strict=True
    ):
        # Rows are independent; a vectorised sum may be split differently for another number of rows.
        torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)


def test_never_holds_more_than_a_chunk_in_fp32():
    logits = random_logits(40, 200, torch.bfloat16)
    support = topk_support(logits, 3)
    with RecordSizes() as record:
        score_teacher(logits, support, chunk_size=4)
    assert record.largest(torch.float32) == 4 * 200


def test_no_gradient():
    logits = random_logits(3, 5).requires_grad_()
    log_probs, entropy = score_teacher(logits, topk_support(logits, 2))
    assert not log_probs.requires_grad
    assert not entropy.requires_grad


def test_topk_support_is_the_students_top_k():
    logits = random_logits(31, 123)
    support = topk_support(logits, 7)
    assert support.dtype == torch.int64
    for row, ids in zip(logits.tolist(), support.tolist(), strict=True):
        assert ids == sorted(range(123), key=lambda j: -row[j])[:7]


def test_topk_support_of_the_full_vocabulary():
    logits = random_logits(3, 11)
    assert torch.equal(topk_support(logits, None), torch.arange(11).repeat(3, 1))
    assert torch.equal(topk_support(logits, 11).sort(dim=-1).values, torch.arange(11).repeat(3, 1))


@pytest.mark.parametrize("k", [2, None])
def test_no_tokens(k):
    logits = torch.zeros(0, 5)
    support = topk_support(logits, k)
    assert support.shape == (0, k or 5)
    log_probs, entropy = score_teacher(logits, support)
    assert log_probs.shape == support.shape
    assert entropy.shape == (0,)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"V=5.*got {k}"):
        topk_support(torch.zeros(2, 5), k)


BAD_ROWS = [([0.0, math.nan, 0.0], "NaN"), ([0.0, 0.0, math.inf], r"\+inf"), ([-math.inf] * 3, "only -inf")]


@pytest.mark.parametrize(("bad_row", "what"), BAD_ROWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_non_finite_rows_are_named(bad_row, what, dtype):
    logits = torch.tensor([[0.0, 1.0, 2.0], [-math.inf, 1.0, 2.0], bad_row, bad_row], dtype=dtype)
    message = f"row 2 holds {what} .2 bad rows"
    with pytest.raises(ValueError, match=f"teacher_logits.*{message}"):
        score_teacher(logits, torch.zeros(4, 1, dtype=torch.int64), chunk_size=3)
    for k in (1, 3, None):
        with pytest.raises(ValueError, match=f"student_logits.*{message}"):
            topk_support(logits, k)


@pytest.mark.parametrize(
    ("logits", "support", "options", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 1).long(), {}, r"\(2, 3, 4\)"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 1).long(), {}, "int64"),
        (torch.zeros(2, 3), torch.zeros(3, 1).long(), {}, r"\(3, 1\)"),
        (torch.zeros(2, 3), torch.zeros(2, 4).long(), {}, r"\(2, 4\)"),
        (torch.zeros(2, 3), torch.zeros(2, 1), {}, "float32"),
        (torch.zeros(2, 3), torch.tensor([[0], [3]]), {}, "from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([[-1], [0]]), {}, "from -1 to 0"),
        (torch.zeros(2, 3), torch.zeros(2, 1).long(), {"temperature": 0.0}, "got 0.0"),
        (torch.zeros(2, 3), torch.zeros(2, 1).long(), {"temperature": math.nan}, "got nan"),
        (torch.zeros(2, 3), torch.zeros(2, 1).long(), {"chunk_size": 0}, "got 0"),
    ],
)
def test_errors_name_the_value(logits, support, options, message):
    with pytest.raises(ValueError, match=message):
        score_teacher(logits, support, **options)

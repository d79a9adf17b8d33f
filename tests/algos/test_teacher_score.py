"""Support, teacher log-probabilities and full-vocabulary entropy."""

import math

import pytest
import torch

from srpo_verl.algos.teacher_score import BLOCK_SIZE
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


def test_entropy_is_over_the_full_vocabulary_not_the_support(device_passes):
    logits = torch.zeros(2, 1000)
    _, entropy = score_teacher(logits, topk_support(logits, 5))
    # ln 1000, in nats; a support of 5 plus a tail bucket would give 0.06. fp32 resolution at 7; an accelerator's
    # probabilities are rounded before they are summed, here all of them in the same direction (6e-8 of 7 nats each).
    tolerance = 2e-6 if device_passes == "accelerator" else 1e-6
    torch.testing.assert_close(entropy, torch.full((2,), math.log(1000)), atol=tolerance, rtol=0)


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


# Rows are cut into V // BLOCK_SIZE blocks where these are more than K: V, K on both sides of that, with and without a
# remainder.
WIDTH = 40
BLOCKS = WIDTH * BLOCK_SIZE
BLOCK_SHAPES = [
    (BLOCKS, 7),
    (BLOCKS + 1, 7),
    (BLOCKS + BLOCK_SIZE - 1, 39),
    (BLOCKS + 5, 40),
    (3 * BLOCK_SIZE, 1),
    (900, 900),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("v", "k"), BLOCK_SHAPES)
def test_topk_support_finds_what_torch_topk_finds(v, k, dtype):
    logits = random_logits(5, v, dtype)
    support = topk_support(logits, k)
    values = logits.gather(1, support)
    # Ties (bf16 has many): which of them is chosen is open, so the values are compared, in descending order.
    assert torch.equal(values, torch.topk(logits, k).values)
    assert all(len(set(row)) == k for row in support.tolist())
    if dtype == torch.float64:
        assert torch.equal(support, torch.topk(logits, k).indices)


@pytest.mark.parametrize("column", [0, WIDTH - 1, WIDTH, BLOCKS - 1, BLOCKS, BLOCKS + BLOCK_SIZE - 2])
def test_topk_support_looks_at_every_column(column):
    # First and last block, first and last token of a block, first and last of the remainder.
    logits = random_logits(3, BLOCKS + BLOCK_SIZE - 1)
    logits[1, column] = 100.0
    assert int(topk_support(logits, 7)[1, 0]) == column


def test_topk_support_of_one_block():
    # All of the largest tokens in one block (every 40th token), or next to each other in different blocks.
    for ids in (torch.arange(3, BLOCKS, WIDTH), torch.arange(200, 200 + BLOCK_SIZE)):
        logits = random_logits(2, BLOCKS + 5)
        logits[:, ids] += 100.0
        assert set(topk_support(logits, BLOCK_SIZE // 2)[0].tolist()) < set(ids.tolist())


@pytest.mark.parametrize("num_finite", [1, 3, 30])
@pytest.mark.parametrize("v", [BLOCKS + 5, 200])
def test_topk_support_of_masked_rows_holds_distinct_ids(v, num_finite):
    logits = torch.full((4, v), -math.inf)
    finite = torch.rand(4, v, generator=torch.Generator().manual_seed(1)).topk(num_finite).indices
    logits.scatter_(1, finite, random_logits(4, num_finite, torch.float32))
    support = topk_support(logits, 25)
    assert all(len(set(row)) == 25 for row in support.tolist())
    assert torch.equal(logits.gather(1, support), torch.topk(logits, 25).values)


@pytest.mark.parametrize("column", [0, BLOCKS // 2, BLOCKS - 1, BLOCKS + 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_topk_support_finds_a_bad_entry_in_any_block(column, bad):
    logits = random_logits(5, BLOCKS + 5, torch.bfloat16)
    logits[3, column] = bad
    with pytest.raises(ValueError, match=rf"row 3 holds {'NaN' if math.isnan(bad) else r'.inf'} .1 bad rows"):
        topk_support(logits, 7)


# Rows of 31, more than once and in any order; all of them; none.
POSITIONS = [[30, 2, 2, 0, 17], list(range(31)), []]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("v", [123, BLOCKS + 3])
def test_positions_select_rows(v, positions):
    logits, positions = random_logits(31, v, torch.bfloat16), torch.tensor(positions, dtype=torch.int64)
    for k in (9, None):
        support = topk_support(logits, k, positions_N=positions)
        assert torch.equal(support, topk_support(logits[positions], k))
        whole = score_teacher(logits[positions], support)
        for selected, expected in zip(
            score_teacher(logits, support, positions_N=positions, chunk_size=2), whole, strict=True
        ):
            # Rows are independent; a vectorised sum may be split differently for another number of rows.
            torch.testing.assert_close(selected, expected, atol=1e-6, rtol=0)


def test_rows_that_no_position_names_are_not_looked_at():
    logits = random_logits(4, 12)
    logits[1] = math.nan
    positions = torch.tensor([3, 0])
    for k in (3, None):
        support = topk_support(logits, k, positions_N=positions)
        assert all(values.isfinite().all() for values in score_teacher(logits, support, positions_N=positions))
        bad = torch.tensor([3, 0, 1])
        with pytest.raises(ValueError, match=r"student_logits.*row 2 holds NaN"):
            topk_support(logits, k, positions_N=bad)
        with pytest.raises(ValueError, match=r"teacher_logits.*row 2 holds NaN"):
            score_teacher(logits, support[[0, 1, 1]], positions_N=bad)


def test_positions_make_no_copy_of_the_logits():
    logits = random_logits(40, 640, torch.bfloat16)
    positions = torch.arange(39, -1, -1)
    support = topk_support(logits, 3, positions_N=positions)
    with RecordSizes() as record:
        score_teacher(logits, support, positions_N=positions, chunk_size=4)
    assert record.largest(torch.bfloat16) <= 4 * 640
    assert record.largest(torch.float32) == 4 * 640


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([[0]]), r"positions_N .*\(1, 1\)"),
        (torch.tensor([0, 4]), r"positions_N .*\[0, 4\).*from 0 to 4"),
        (torch.tensor([-1, 0]), "positions_N .*from -1 to 0"),
        (torch.tensor([True, False]), "positions_N .*bool"),
    ],
)
def test_errors_name_the_position(positions, message):
    with pytest.raises(ValueError, match=message):
        topk_support(torch.zeros(4, 5), 2, positions_N=positions)
    with pytest.raises(ValueError, match=message):
        score_teacher(torch.zeros(4, 5), torch.zeros(2, 1).long(), positions_N=positions)


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

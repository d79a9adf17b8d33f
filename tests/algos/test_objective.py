"""Equation (5): the sum of both branches over one denominator."""

import pytest
import torch

from srpo_verl.functional import objective_summands, srpo_objective

NAN = float("nan")


def random_case(batch=6, positions=7, seed=5):
    generator = torch.Generator().manual_seed(seed)
    grpo, sdpo, weights = (torch.randn(batch, positions, generator=generator, dtype=torch.float64) for _ in range(3))
    # Ragged lengths with a one-token response, and masked tokens in the middle (tool output, for instance).
    mask = torch.arange(positions) < torch.tensor([7, 1, 3, 5, 7, 2])[:batch, None]
    mask[0, 2:4] = False
    rows = torch.tensor([True, False, True, False, False, True])[:batch]
    return grpo, sdpo, weights, mask, rows


def python_objective(grpo, sdpo, weights, mask, rows, num_tokens):
    total = 0.0
    for b in range(grpo.shape[0]):
        for t in range(grpo.shape[1]):
            if mask[b, t]:
                total += float(weights[b, t] * sdpo[b, t]) if rows[b] else float(grpo[b, t])
    return total / num_tokens


def test_matches_a_loop_over_tokens():
    case = random_case()
    expected = python_objective(*case, num_tokens=int(case[3].sum()))
    assert float(srpo_objective(*case)) == pytest.approx(expected, abs=1e-14)  # 23 float64 additions
    assert float(srpo_objective(*case, num_tokens=100)) == pytest.approx(python_objective(*case, 100), abs=1e-14)


def test_gradients_are_the_coefficients_of_the_tokens():
    grpo, sdpo, weights, mask, rows = random_case()
    grpo.requires_grad_(), sdpo.requires_grad_(), weights.requires_grad_()
    srpo_objective(grpo, sdpo, weights, mask, rows, num_tokens=50).backward()
    assert torch.equal(grpo.grad, (mask & ~rows[:, None]).double() / 50)
    torch.testing.assert_close(sdpo.grad, weights.detach() * (mask & rows[:, None]) / 50, atol=0, rtol=1e-15)
    assert weights.grad is None


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 2, 3], [1] * 6])
def test_micro_batches_add_up_to_the_mini_batch(sizes):
    case = random_case()
    count = int(case[3].sum())
    parts = zip(*(tensor.split(sizes) for tensor in case), strict=True)
    total = sum(float(srpo_objective(*part, num_tokens=torch.tensor(count))) for part in parts)
    assert total == pytest.approx(float(srpo_objective(*case)), abs=1e-14)  # order of float64 additions


def test_entries_outside_their_branch_may_be_nan():
    grpo, sdpo, weights, mask, rows = random_case()
    expected = srpo_objective(grpo, sdpo, weights, mask, rows)
    is_grpo, is_sdpo = mask & ~rows[:, None], mask & rows[:, None]
    grpo = grpo.masked_fill(~is_grpo, NAN).requires_grad_()
    sdpo = sdpo.masked_fill(~is_sdpo, NAN).requires_grad_()
    weights = weights.masked_fill(~is_sdpo, float("inf"))
    loss = srpo_objective(grpo, sdpo, weights, mask, rows)
    assert torch.equal(loss, expected)
    loss.backward()
    assert grpo.grad.isfinite().all()
    assert sdpo.grad.isfinite().all()


@pytest.mark.parametrize("rows_value", [True, False])
def test_empty_branch_is_an_attached_zero(rows_value):
    grpo, sdpo, weights, mask, rows = random_case()
    grpo.requires_grad_(), sdpo.requires_grad_()
    srpo_objective(grpo, sdpo, weights, mask, torch.full_like(rows, rows_value)).backward()
    empty, full = (grpo, sdpo) if rows_value else (sdpo, grpo)
    assert torch.equal(empty.grad, torch.zeros_like(empty))
    assert full.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_no_valid_token_is_an_attached_zero(shape):
    grpo, sdpo = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    mask, rows = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape[0], dtype=torch.bool)
    loss = srpo_objective(grpo, sdpo, torch.ones(shape), mask, rows)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(grpo.grad, torch.zeros(shape))
    assert torch.equal(sdpo.grad, torch.zeros(shape))


def test_integer_mask_and_narrow_dtypes_sum_in_fp32():
    ones = torch.ones(2, 3000, dtype=torch.bfloat16)
    loss = srpo_objective(ones, ones, ones, ones.long(), torch.tensor([True, False]), num_tokens=1)
    assert loss.dtype == torch.float32
    assert float(loss) == 6000.0  # bf16 cannot count beyond 256


@pytest.mark.parametrize("num_tokens", [0, -3, NAN, float("inf"), torch.tensor(0)])
def test_impossible_denominators_raise(num_tokens):
    with pytest.raises(ValueError, match="num_tokens"):
        srpo_objective(*random_case(), num_tokens=num_tokens)


@pytest.mark.parametrize(("position", "name"), [(1, "sdpo_loss_BT"), (2, "weights_BT"), (3, "response_mask_BT")])
def test_shapes_must_agree(position, name):
    case = list(random_case())
    case[position] = case[position][:, :-1]
    with pytest.raises(ValueError, match=name + r".*\(6, 6\)"):
        srpo_objective(*case)


def test_shares_by_hand():
    grpo, sdpo, weights, mask, _ = random_case()
    g, d = torch.tensor([1.0, 0.5, 0.0, 0.3, 2.0, 0.0]), torch.tensor([0.0, 0.5, 1.0, 0.7, 1.0, 0.0])
    expected = sum(
        float(g[b]) * float(grpo[b, t]) + float(d[b]) * float(weights[b, t] * sdpo[b, t])
        for b in range(6)
        for t in range(7)
        if mask[b, t]
    )
    assert float(srpo_objective(grpo, sdpo, weights, mask, d, grpo_B=g, num_tokens=9)) == pytest.approx(
        expected / 9, abs=1e-14
    )
    # Without g every row's rest goes to GRPO.
    d = torch.tensor([0.25, 0.5, 1.0, 0.0, 0.75, 0.125])
    by_default = srpo_objective(grpo, sdpo, weights, mask, d)
    assert torch.equal(by_default, srpo_objective(grpo, sdpo, weights, mask, d, grpo_B=1 - d))


def test_a_bool_means_shares_of_0_and_1():
    case = random_case()
    objective = srpo_objective(*case)
    assert torch.equal(objective, srpo_objective(*case[:4], case[4].float()))
    assert torch.equal(objective, srpo_objective(*case, grpo_B=~case[4]))
    assert torch.equal(objective, sum(objective_summands(*case)))


def test_one_share_for_all_rows_scales_the_sum_to_the_last_bit():
    """As lambda did when it stood before the sums."""
    grpo, sdpo, weights, mask, rows = (tensor.float() for tensor in random_case(seed=8))
    mask, rows = mask.bool(), rows.bool()
    everybody = torch.ones(6)
    whole = objective_summands(grpo, sdpo, weights, mask, rows, grpo_B=everybody, num_tokens=23)
    mixed = objective_summands(grpo, sdpo, weights, mask, 0.3 * rows.float(), grpo_B=0.7 * everybody, num_tokens=23)
    assert torch.equal(mixed[0], whole[0] * 0.7)
    assert torch.equal(mixed[1], whole[1] * 0.3)


def test_branch_mask_must_be_bool_or_shares_per_row():
    case = list(random_case())
    for wrong in (case[4].long(), case[4][:5], case[4][:, None]):
        with pytest.raises(ValueError, match=r"sdpo_B must be bool of shape \(6,\)"):
            srpo_objective(*case[:4], wrong)
        with pytest.raises(ValueError, match=r"grpo_B must be bool of shape \(6,\)"):
            srpo_objective(*case, grpo_B=wrong)
    for value in (-0.5, NAN, float("inf")):
        wrong = torch.tensor([0.0, 0.0, value, 0.0, 0.0, 0.0])
        with pytest.raises(ValueError, match=r"sdpo_B: shares must be finite and at least 0, got .* in row 2"):
            srpo_objective(*case[:4], wrong)
    with pytest.raises(ValueError, match=r"grpo_loss_BT must have shape \(B, T\)"):
        srpo_objective(*(tensor[0] for tensor in case[:4]), case[4])

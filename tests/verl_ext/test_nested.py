"""Helpers for jagged batches, against loops over single tokens."""

import pytest
import torch
from tensordict import TensorDict

from srpo_verl.verl_ext.nested import filler, host_lengths, jagged, like, response_logit_index, rows_to_tokens

PROMPTS, RESPONSES = [3, 1, 5, 2], [2, 4, 1, 6]
ROWS = [[0, 1, 2, 3], [2], [3, 0], [1, 1], []]


def batch(prompts=PROMPTS, responses=RESPONSES):
    """Token ids that are all different, so that every position is known by its content."""
    numbers = iter(range(1, 1000))
    sequences = [[next(numbers) for _ in range(p + r)] for p, r in zip(prompts, responses, strict=True)]
    data = {
        "input_ids": jagged([torch.tensor(sequence) for sequence in sequences]),
        "responses": jagged([torch.tensor(s[p:]) for s, p in zip(sequences, prompts, strict=True)]),
    }
    return TensorDict(data, batch_size=len(prompts)), sequences


def index_of(data, rows, stride):
    lengths, responses = host_lengths(data["input_ids"].offsets().diff(), data["responses"].offsets().diff())
    return response_logit_index(lengths, responses, rows.tolist(), stride)


@pytest.mark.parametrize("rows", ROWS)
def test_packed_logits(rows):
    """The logit at the position before a response token predicts it."""
    data, sequences = batch()
    packed = [token for sequence in sequences for token in sequence]
    index = index_of(data, torch.tensor(rows, dtype=torch.int64), None)
    expected = [packed.index(token) - 1 for row in rows for token in sequences[row][PROMPTS[row] :]]
    assert index.tolist() == expected
    assert index.dtype == torch.int64


@pytest.mark.parametrize("stride", [8, 11])
@pytest.mark.parametrize("rows", ROWS)
def test_padded_logits(rows, stride):
    data, sequences = batch()
    padded = [token for sequence in sequences for token in sequence + [0] * (stride - len(sequence))]
    index = index_of(data, torch.tensor(rows, dtype=torch.int64), stride)
    expected = [padded.index(token) - 1 for row in rows for token in sequences[row][PROMPTS[row] :]]
    assert index.tolist() == expected


def test_the_index_picks_the_same_logits_packed_and_padded():
    data, sequences = batch()
    rows, stride = torch.tensor([3, 1]), 10
    packed = torch.cat([torch.tensor(sequence) for sequence in sequences])
    padded = torch.stack([torch.tensor(s + [0] * (stride - len(s))) for s in sequences]).flatten()
    assert torch.equal(packed[index_of(data, rows, None)], padded[index_of(data, rows, stride)])


def test_random_lengths_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        size = int(torch.randint(1, 7, (), generator=generator))
        prompts = torch.randint(1, 9, (size,), generator=generator).tolist()
        responses = torch.randint(1, 9, (size,), generator=generator).tolist()
        rows = torch.randperm(size, generator=generator)[: int(torch.randint(0, size + 1, (), generator=generator))]
        data, _ = batch(prompts, responses)
        for stride in (None, 20):
            expected = []
            for row in rows.tolist():
                before = sum(prompts[:row]) + sum(responses[:row]) if stride is None else row * stride
                for t in range(responses[row]):
                    expected.append(before + prompts[row] + t - 1)
            assert index_of(data, rows, stride).tolist() == expected


def test_like_has_the_row_lengths_of_the_reference_and_the_values_given():
    reference = jagged([torch.ones(length) for length in RESPONSES])
    values = torch.arange(float(sum(RESPONSES)))
    result = like(values, reference)
    assert [len(row) for row in result.unbind()] == RESPONSES
    assert torch.equal(torch.cat(result.unbind()), values)


def test_like_pads_to_the_longest_row_on_the_right():
    """Without the lengths, torch pads every row to the length of all rows together."""
    reference = jagged([torch.ones(length) for length in RESPONSES])
    values = torch.arange(1.0, sum(RESPONSES) + 1)
    padded = like(values, reference).to_padded_tensor(0.0)
    assert padded.shape == (len(RESPONSES), max(RESPONSES))
    start = 0
    for row, length in enumerate(RESPONSES):
        assert padded[row, :length].tolist() == values[start : start + length].tolist()
        assert padded[row, length:].tolist() == [0.0] * (max(RESPONSES) - length)
        start += length


def test_like_pads_beside_the_reference_to_the_same_shape():
    """As the loss does: one select, one to_padded_tensor over fields of both kinds."""
    reference = jagged([torch.ones(length) for length in RESPONSES])
    data = TensorDict({"a": reference, "b": like(reference.values() * 2, reference)}, batch_size=len(RESPONSES))
    dense = data.to_padded_tensor()
    assert dense["a"].shape == dense["b"].shape == (4, 6)
    assert torch.equal(dense["a"] * 2, dense["b"])


def test_like_keeps_dtype_and_gradient():
    reference = jagged([torch.ones(2), torch.ones(3)])
    values = torch.ones(5, dtype=torch.float64, requires_grad=True)
    result = like(values, reference)
    assert result.dtype == torch.float64
    (result.values() * torch.arange(5.0)).sum().backward()
    assert values.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("flags", [torch.tensor([True, False, True, False]), torch.tensor([0.5, 1.0, 2.0, 4.0])])
def test_rows_to_tokens_repeats_a_value_over_its_row(flags):
    reference = jagged([torch.ones(length) for length in RESPONSES])
    expected = [flag for flag, length in zip(flags.tolist(), RESPONSES, strict=True) for _ in range(length)]
    result = rows_to_tokens(flags, reference)
    assert result.tolist() == expected
    assert result.dtype == flags.dtype


def test_a_filler_makes_no_empty_row():
    row = filler(torch.int32)
    assert row.dtype == torch.int32
    assert len(row) > 0
    assert not row.any()
    assert [len(part) for part in jagged([row, torch.ones(3, dtype=torch.int32), row]).unbind()] == [1, 3, 1]

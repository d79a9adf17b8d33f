"""Attention over packed rows: every row by itself, in values and gradients, against a softmax written out."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from srpo_verl.cpu.attention import PACKED_ATTENTION, packed_attention, register
from tests.support import tiny_model

HEADS, SIZE = 4, 8
LENGTHS = [7, 1, 30, 12, 1, 29, 8]


def row_by_row(query, key, value, lengths, window):
    """(1, H, N, D) -> (1, N, H, D), one row at a time."""
    repeats, outputs, first = query.shape[1] // key.shape[1], [], 0
    for length in lengths:
        q, k, v = (tensor[0, :, first : first + length] for tensor in (query, key, value))
        k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        hidden = (distance < 0) | (distance >= (window or length))
        weights = (q @ k.transpose(1, 2) / SIZE**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append((weights @ v).transpose(0, 1))
        first += length
    return torch.cat(outputs)[None]


@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("lengths", [LENGTHS, [13], [1, 1]])
def test_every_row_attends_to_itself(kv_heads, window, lengths):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(lengths), SIZE) for heads in (HEADS, kv_heads, kv_heads)]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    module = SimpleNamespace(num_key_value_groups=HEADS // kv_heads, is_causal=True)
    output, _ = packed_attention(module, *given, None, position_ids=positions, sliding_window=window)
    expected = row_by_row(*given, lengths, window)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    # Both sides in float64.
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)
    for got, want in zip(
        torch.autograd.grad(output, given, upstream), torch.autograd.grad(expected, given, upstream), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


def test_without_positions_rows_could_be_anything():
    given = [torch.zeros(1, HEADS, 3, SIZE)] * 3
    with pytest.raises(ValueError, match="attn_implementation=sdpa"):
        packed_attention(SimpleNamespace(is_causal=True), *given, None)


def test_a_model_gives_a_packed_row_what_it_gives_the_row_alone(tmp_path):
    register()
    folder = tiny_model(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    packed = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=PACKED_ATTENTION).eval()
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 90, (length,), generator=generator) for length in LENGTHS]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    with torch.no_grad():
        together = packed(torch.cat(rows)[None], position_ids=positions, use_cache=False).logits[0]
        alone = torch.cat([plain(row[None], use_cache=False).logits[0] for row in rows])
        # fp32 in another order; logits of order 1.
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        # Padded rows bring a mask.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        padded = packed(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)

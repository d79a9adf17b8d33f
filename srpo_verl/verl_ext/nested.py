"""Small helpers for veRL's jagged batches."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from srpo_verl.verl_ext.schema import FILLER_LENGTH


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    """A jagged nested tensor of one-dimensional rows."""
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def filler(dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """What a row that is not distilled holds in a ragged field."""
    return torch.zeros(FILLER_LENGTH, dtype=dtype, device=device)


def like(values: torch.Tensor, reference: Any) -> torch.Tensor:
    """A jagged tensor with the row lengths of `reference` and the given packed values."""
    offsets = reference.offsets()
    # Without the lengths, padding such a tensor makes every row as long as all rows together.
    lengths = offsets.diff()
    return torch.nested.nested_tensor_from_jagged(
        values, offsets, min_seqlen=int(lengths.min()), max_seqlen=int(lengths.max())
    )


def rows_to_tokens(flag_B: torch.Tensor, reference: Any) -> torch.Tensor:
    """Repeat one value per row over the row's tokens: (B,) -> packed (sum T,)."""
    return flag_B.to(reference.values().device).repeat_interleave(reference.offsets().diff())


def response_logit_index(batch: TensorDict, rows: torch.Tensor, row_stride: int | None) -> torch.Tensor:
    """Positions, in the flattened logits, that predict the response tokens of the given rows, row after row.

    The logit that predicts response token t of a row stands at prompt_len + t - 1 of that row's sequence.

    Args:
        batch: with jagged `input_ids` (prompt + response) and `responses`.
        rows: int64 indices of rows.
        row_stride: None for packed logits (rows follow each other without padding), else the padded length.
    """
    offsets = batch["input_ids"].offsets()
    lengths, responses = offsets.diff(), batch["responses"].offsets().diff()
    starts = offsets[:-1] if row_stride is None else torch.arange(len(lengths), device=offsets.device) * row_stride
    first = starts + lengths - responses - 1
    spans = [torch.arange(int(responses[row]), device=offsets.device) + first[row] for row in rows.tolist()]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64, device=offsets.device)

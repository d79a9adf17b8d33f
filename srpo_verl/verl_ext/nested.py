"""Small helpers for veRL's jagged batches."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from srpo_verl.verl_ext.fields import FILLER_LENGTH


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    """A jagged nested tensor of one-dimensional rows."""
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def filler(dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """What a row that is not distilled holds in a ragged field."""
    return torch.zeros(FILLER_LENGTH, dtype=dtype, device=device)


def like(values: torch.Tensor, reference: Any, lengths: list[int] | None = None) -> torch.Tensor:
    """A jagged tensor with the given packed values and the row lengths of `reference`, which the host may know."""
    offsets = reference.offsets()
    # Without the lengths, padding such a tensor makes every row as long as all rows together.
    lengths = offsets.diff().tolist() if lengths is None else lengths
    return torch.nested.nested_tensor_from_jagged(values, offsets, min_seqlen=min(lengths), max_seqlen=max(lengths))


def rows_to_tokens(flag_B: torch.Tensor, reference: Any) -> torch.Tensor:
    """Repeat one value per row over the row's tokens: (B,) -> packed (sum T,)."""
    return flag_B.to(reference.values().device).repeat_interleave(reference.offsets().diff())


def host_lengths(*columns: torch.Tensor) -> list[list[int]]:
    """Several (B,) tensors of whole numbers as lists, with one look at the device."""
    return torch.stack([column.to(columns[0].device, torch.int64) for column in columns]).tolist()


def response_logit_index(
    lengths: list[int], responses: list[int], rows: list[int], row_stride: int | None
) -> torch.Tensor:
    """Positions, in the flattened logits, that predict the response tokens of the given rows, row after row.

    The logit that predicts response token t of a row stands at prompt_len + t - 1 of that row's sequence. int64, on
    the host.

    Args:
        lengths: tokens of every row, prompt and response.
        responses: response tokens of every row.
        rows: the rows wanted.
        row_stride: None for packed logits (rows follow each other without padding), else the padded length.
    """
    starts = (
        [0, *itertools.accumulate(lengths)]
        if row_stride is None
        else [row * row_stride for row in range(len(lengths))]
    )
    ends = [starts[row] + lengths[row] - 1 for row in rows]
    spans = [torch.arange(end - responses[row], end) for row, end in zip(rows, ends, strict=True)]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def rows_of(field: Any, lengths: list[int], rows: list[int]) -> torch.Tensor:
    """The packed values of some rows of a jagged field whose lengths are known."""
    values = field.values()
    if sum(lengths) != len(values):
        raise ValueError(f"a field of {len(values)} values was expected to have {sum(lengths)}")
    parts = values.split(lengths)
    return torch.cat([parts[row] for row in rows]) if rows else values[:0]

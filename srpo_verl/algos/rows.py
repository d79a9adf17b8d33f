"""Rows of a matrix of logits, as contiguous runs where they are, and the way they are read."""

from __future__ import annotations

from collections.abc import Iterator

import torch

RowIndex = slice | torch.Tensor
"""Some rows of a matrix: a contiguous run, or int64 indices."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in: fp32 for fp32 and narrower inputs, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def token_chunks(num_tokens: int, chunk_size: int) -> Iterator[slice]:
    """Cut `num_tokens` into slices of `chunk_size`."""
    for start in range(0, num_tokens, chunk_size):
        yield slice(start, min(start + chunk_size, num_tokens))


def cut(rows_N: torch.Tensor, size: int, device: torch.device) -> Iterator[tuple[slice, RowIndex]]:
    """Cut rows, int64 on the host, into pieces of at most `size`: (which of the N, their rows).

    A run of neighbours is a slice. Runs shorter than a quarter of a piece are taken together, by indices.
    """
    if len(rows_N) == 0:
        return
    ends = [*((rows_N.diff() != 1).nonzero().flatten() + 1).tolist(), len(rows_N)]
    short = max(2, -(-size // 4))
    start, next_end = 0, 0
    while start < len(rows_N):
        while ends[next_end] <= start:
            next_end += 1
        run = ends[next_end] - start
        if run >= short or next_end == len(ends) - 1:
            stop = start + min(size, run)
            first = int(rows_N[start])
            yield slice(start, stop), slice(first, first + stop - start)
        else:
            stop, at = start, next_end
            while at < len(ends) and ends[at] - stop < short and stop - start < size:
                stop, at = ends[at], at + 1
            stop = min(stop, start + size)
            yield slice(start, stop), rows_N[start:stop].to(device, non_blocking=True)
        start = stop


def count(rows: RowIndex) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def entries(logits_MV: torch.Tensor, rows_C: torch.Tensor | None, ids_CK: torch.Tensor) -> torch.Tensor:
    """Single logits of the rows (None: of all), in the accumulation dtype: (C, K)."""
    picked_CK = logits_MV.gather(1, ids_CK) if rows_C is None else logits_MV[rows_C[:, None], ids_CK]
    return picked_CK.to(accumulation_dtype(logits_MV.dtype))


def load(logits_MV: torch.Tensor, rows: RowIndex, out_CV: torch.Tensor) -> torch.Tensor:
    """Copy the rows' logits to the first rows of `out_CV` and return these, (C, V) and free to overwrite."""
    out_CV = out_CV[: count(rows)]
    if isinstance(rows, slice):
        return out_CV.copy_(logits_MV[rows])
    if logits_MV.dtype == out_CV.dtype:
        return torch.index_select(logits_MV, 0, rows, out=out_CV)
    return out_CV.copy_(logits_MV.index_select(0, rows))


def read(logits_MV: torch.Tensor, rows: RowIndex, room_CV: torch.Tensor, *, any_dtype: bool = False) -> torch.Tensor:
    """The rows' logits, (C, V), to be read only: a view of a run (of the room's dtype or `any_dtype`), else loaded."""
    in_place = isinstance(rows, slice) and (any_dtype or logits_MV.dtype == room_CV.dtype)
    return logits_MV[rows] if in_place else load(logits_MV, rows, room_CV)

"""Helpers of the functions over logits: cutting N tokens into chunks, and the checks they share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

# One chunk of logits in fp32 takes at most this many elements (128 MiB), unless a single row is larger.
DEFAULT_CHUNK_ELEMENTS = 2**25


def token_chunks(num_tokens: int, vocab_size: int, chunk_size: int | None) -> Iterator[slice]:
    """Cut `num_tokens` rows into slices of `chunk_size` rows (None: as many as `DEFAULT_CHUNK_ELEMENTS` allows)."""
    if chunk_size is None:
        chunk_size = max(1, DEFAULT_CHUNK_ELEMENTS // max(1, vocab_size))
    for start in range(0, num_tokens, chunk_size):
        yield slice(start, min(start + chunk_size, num_tokens))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in: fp32 for fp32 and narrower inputs, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_logits(name: str, logits_NV: torch.Tensor) -> None:
    """Raise ValueError unless the tensor is a floating-point N x V matrix with V >= 1."""
    if logits_NV.dim() != 2 or logits_NV.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, V) with V >= 1, got {tuple(logits_NV.shape)}")
    if not logits_NV.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {logits_NV.dtype}")


def check_support(support_NK: torch.Tensor, logits_NV: torch.Tensor) -> None:
    """Raise ValueError unless `support_NK` holds integer ids in [0, V) and has one row per row of the logits."""
    num_tokens, vocab_size = logits_NV.shape
    if support_NK.dim() != 2 or support_NK.shape[0] != num_tokens or not 1 <= support_NK.shape[1] <= vocab_size:
        raise ValueError(
            f"support_NK must have shape (N={num_tokens}, K) with 1 <= K <= V={vocab_size}, "
            f"got {tuple(support_NK.shape)}"
        )
    if support_NK.is_floating_point() or support_NK.is_complex() or support_NK.dtype == torch.bool:
        raise ValueError(f"support_NK must hold integer token ids, got {support_NK.dtype}")
    if support_NK.numel() == 0:
        return
    smallest, largest = (int(end) for end in torch.aminmax(support_NK))
    if smallest < 0 or largest >= vocab_size:
        raise ValueError(f"support_NK must hold ids in [0, V={vocab_size}), got ids from {smallest} to {largest}")


def check_temperature_and_chunk(temperature: float, chunk_size: int | None) -> None:
    """Raise ValueError unless the temperature is positive and finite and the chunk size at least 1 (or None)."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")


def raise_on_bad_row(name: str, reduced_N: torch.Tensor) -> None:
    """Raise ValueError naming the first row whose maximum (or logsumexp) is not finite.

    Either reduction is NaN where the row holds a NaN, +inf where it holds +inf, and -inf where all of it is -inf.
    A row with some entries of -inf (masked vocabulary) has a finite one and passes.
    """
    bad_N = ~torch.isfinite(reduced_N)
    if bool(bad_N.any()):
        row = int(bad_N.nonzero()[0])
        value = float(reduced_N[row])
        what = "NaN" if math.isnan(value) else "+inf" if value > 0 else "only -inf"
        raise ValueError(f"{name} is not finite: row {row} holds {what} ({int(bad_N.sum())} bad rows)")

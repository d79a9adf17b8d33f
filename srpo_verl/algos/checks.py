"""Checks of what the functions over logits are given: shapes at once, numbers with one look by the host.

A device reads ids and logits long before the host could have looked at them. So ids are held in range where they are
used (`in_range`), and what is wrong is counted on the device, all of it in one tensor: `Findings`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


class NonFiniteError(ValueError):
    """Logits with NaN, +inf, or nothing but -inf in a row."""


class Findings:
    """Counts of wrong entries, read by the host at once; each has a function that raises the error."""

    def __init__(self) -> None:
        self._counts: list[torch.Tensor] = []
        self._handlers: list[Callable[[], None]] = []

    def add(self, is_bad: torch.Tensor, handle: Callable[[], None]) -> None:
        """`handle` is called if an entry of `is_bad` is True: it raises, or mends."""
        if is_bad.numel() > 0:
            self._counts.append(is_bad.any())
            self._handlers.append(handle)

    def settle(self) -> None:
        """Look, once, and call the handlers of what was found in the order in which it was added."""
        if not self._counts:
            return
        found = torch.stack(self._counts).tolist()
        for is_found, handle in zip(found, self._handlers, strict=True):
            if is_found:
                handle()
        self._counts, self._handlers = [], []


def check_logits(name: str, logits_NV: torch.Tensor) -> None:
    """Raise ValueError unless the tensor is a floating-point N x V matrix with V >= 1."""
    if logits_NV.dim() != 2 or logits_NV.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, V) with V >= 1, got {tuple(logits_NV.shape)}")
    if not logits_NV.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {logits_NV.dtype}")


def check_positions(positions_N: torch.Tensor | None, logits_MV: torch.Tensor) -> torch.Tensor:
    """The rows of N tokens on the host, int64; ValueError unless positions are None (N = M) or integers in [0, M)."""
    if positions_N is None:
        return torch.arange(logits_MV.shape[0])
    if positions_N.dim() != 1:
        raise ValueError(f"positions_N must have shape (N,), got {tuple(positions_N.shape)}")
    _check_integers("positions_N", positions_N)
    positions_N = positions_N.detach().cpu().long()
    _raise_if_out_of_range("positions_N", positions_N, logits_MV.shape[0])
    return positions_N


def in_range(name: str, ids: torch.Tensor, limit: int, findings: Findings) -> torch.Tensor:
    """The ids as int64, held in [0, limit); a finding raises ValueError if they were not. At once unless integers."""
    _check_integers(name, ids)
    ids = ids.long()
    held = ids.clamp(0, limit - 1)
    findings.add(held != ids, lambda: _raise_if_out_of_range(name, ids, limit))
    return held


def distinct(name: str, ids_NK: torch.Tensor, findings: Findings) -> None:
    """A finding raises ValueError if a row holds an id twice."""
    if ids_NK.stride(0) == 0:
        ids_NK = ids_NK[:1]  # one row for all tokens

    def handle() -> None:
        ordered_NK = ids_NK.sort(dim=-1).values
        row, column = (int(place) for place in (ordered_NK[:, 1:] == ordered_NK[:, :-1]).nonzero()[0])
        raise ValueError(
            f"{name} must hold distinct ids in each row: row {row} holds {int(ordered_NK[row, column])} twice"
        )

    ordered_NK = ids_NK.sort(dim=-1).values
    findings.add(ordered_NK[:, 1:] == ordered_NK[:, :-1], handle)


def _check_integers(name: str, ids: torch.Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must hold integer ids, got {ids.dtype}")


def _raise_if_out_of_range(name: str, ids: torch.Tensor, limit: int) -> None:
    if ids.numel() == 0:
        return
    smallest, largest = (int(end) for end in torch.aminmax(ids))
    if smallest < 0 or largest >= limit:
        raise ValueError(f"{name} must hold ids in [0, {limit}), got ids from {smallest} to {largest}")


def check_support_shape(name: str, support_NK: torch.Tensor, num_tokens: int, vocab_size: int) -> None:
    """Raise ValueError unless the support has one row per token and 1 <= K <= V."""
    if support_NK.dim() != 2 or support_NK.shape[0] != num_tokens or not 1 <= support_NK.shape[1] <= vocab_size:
        raise ValueError(
            f"{name} must have shape ({num_tokens}, K) with 1 <= K <= V={vocab_size}, got {tuple(support_NK.shape)}"
        )


def check_temperature_and_chunk(temperature: float, chunk_size: int | None) -> None:
    """Raise ValueError unless the temperature is positive and finite and the chunk size at least 1 (or None)."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")


def raise_on_bad_row(name: str, reduced_N: torch.Tensor) -> None:
    """Raise NonFiniteError naming the first row whose maximum (or logsumexp) is not finite.

    Either reduction is NaN where the row holds a NaN, +inf where it holds +inf, and -inf where all of it is -inf.
    A row with some entries of -inf (masked vocabulary) has a finite one and passes.
    """
    bad_N = ~torch.isfinite(reduced_N)
    if bool(bad_N.any()):
        row = int(bad_N.nonzero()[0])
        value = float(reduced_N[row])
        what = "NaN" if math.isnan(value) else "+inf" if value > 0 else "only -inf"
        raise NonFiniteError(f"{name} is not finite: row {row} holds {what} ({int(bad_N.sum())} bad rows)")

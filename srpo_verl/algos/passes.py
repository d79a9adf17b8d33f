"""Passes over the logits of a chunk of tokens, as a CPU wants them; `device` says what the others want instead.

A sweep reduces every row to a shift and a norm with logsumexp(z / T) = shift / T + log_norm, and to an entropy; a
second pass turns these into the gradient.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from srpo_verl.algos.buckets import LOG_ZERO
from srpo_verl.algos.rows import RowIndex, accumulation_dtype, count, load, read

LN_2 = math.log(2.0)

Rooms = tuple[torch.Tensor, torch.Tensor]


class Sums(NamedTuple):
    """Of the softmax of every row, (N, 1). Where nothing is left of a row: shift -inf, entropy 0."""

    shift_N1: torch.Tensor
    log_norm_N1: torch.Tensor
    """logsumexp(z / T) - shift / T."""
    entropy_N1: torch.Tensor | None
    """Nats; None unless asked for."""

    @property
    def shift_N(self) -> torch.Tensor:
        return self.shift_N1[:, 0]

    @property
    def log_norm_N(self) -> torch.Tensor:
        return self.log_norm_N1[:, 0]

    def pick(self, which: Any) -> Sums:
        entropy_N1 = None if self.entropy_N1 is None else self.entropy_N1[which]
        return Sums(self.shift_N1[which], self.log_norm_N1[which], entropy_N1)


class Raw(NamedTuple):
    """What the chunks of a sweep leave, before `Passes.finish`."""

    reference_N1: torch.Tensor
    norm_N1: torch.Tensor
    mean_N1: torch.Tensor

    def of(self, part: slice) -> Raw:
        return Raw(*(values[part] for values in self))


class Slope(NamedTuple):
    """How a row becomes its gradient: e_v * (factor + h * (log e_v + offset)), all (N, 1).

    e_v = exp((z_v - shift) / T), and log e_v is held at LOG_ZERO.
    """

    shift_N1: torch.Tensor
    factor_N1: torch.Tensor
    h_N1: torch.Tensor | None = None
    offset_N1: torch.Tensor | None = None

    def of(self, part: slice) -> Slope:
        h_N1, offset_N1 = (None if values is None else values[part] for values in (self.h_N1, self.offset_N1))
        return Slope(self.shift_N1[part], self.factor_N1[part], h_N1, offset_N1)


class Passes:
    """On a CPU: cast up once, then pass after pass over a chunk in the caches."""

    # Elements of one chunk in the accumulation dtype, unless a single row per thread is larger (1 to 4 MiB).
    chunk_elements = 2**18
    large_chunk_elements = 2**20
    # The larger chunks are for those who have this many: scratch memory stays a small share of the logits.
    many_chunks = 128
    # Tokens whose candidates for the support are in memory at once.
    topk_rows = 64
    # Entries of the supports that are worked on together: few calls for what is small.
    block_elements = 2**18

    def chunk_rows(self, num_tokens: int, vocab_size: int, chunk_size: int | None) -> int:
        """`chunk_size`, or for None what suits the device."""
        if chunk_size is not None:
            return chunk_size
        large = min(self.large_chunk_elements // vocab_size, num_tokens // self.many_chunks)
        # Reductions run one row per thread.
        return max(torch.get_num_threads(), self.chunk_elements // vocab_size, large)

    def block_rows(self, chunk_rows: int, support_size: int) -> int:
        """Tokens whose supports are worked on together."""
        return max(chunk_rows, self.block_elements // support_size)

    def rooms(self, logits_MV: torch.Tensor, num_rows: int) -> Rooms:
        """Scratch memory of one chunk in the accumulation dtype, for all chunks of a call."""
        dtype = accumulation_dtype(logits_MV.dtype)
        room_CV = torch.empty(num_rows, logits_MV.shape[1], dtype=dtype, device=logits_MV.device)
        return room_CV, torch.empty_like(room_CV)

    def raw(self, logits_MV: torch.Tensor, num_tokens: int) -> Raw:
        dtype, device = accumulation_dtype(logits_MV.dtype), logits_MV.device
        return Raw(*torch.zeros(3, num_tokens, 1, dtype=dtype, device=device))

    def sweep(
        self,
        logits_MV: torch.Tensor,
        rows: RowIndex,
        rooms: Rooms,
        temperature: float,
        with_entropy: bool,
        without_CK: torch.Tensor | None,
        out: Raw,
    ) -> None:
        """One chunk; with ids `without_CK` these entries are left out. `out` holds the chunk's places."""
        room_CV, weights_CV = (room[: count(rows)] for room in rooms)
        if without_CK is None:
            logits_CV = read(logits_MV, rows, room_CV)
        else:
            logits_CV = load(logits_MV, rows, room_CV).scatter_(1, without_CK, -math.inf)
        torch.amax(logits_CV, dim=-1, keepdim=True, out=out.reference_N1)
        # Shift before scaling and before the products: no rounding of large logits enters them then.
        torch.sub(logits_CV, out.reference_N1, out=room_CV)
        weights_CV = weights_CV if with_entropy else room_CV
        exponentials(room_CV, temperature, weights_CV)
        torch.sum(weights_CV, dim=-1, keepdim=True, out=out.norm_N1)
        if with_entropy:
            # nansum: 0 * -inf counts as 0.
            torch.nansum(weights_CV.mul_(room_CV), dim=-1, keepdim=True, out=out.mean_N1)

    def finish(
        self, raw: Raw, logits_MV: torch.Tensor, rows_N: torch.Tensor | None, temperature: float, with_entropy: bool
    ) -> Sums:
        """The sums, from what the chunks left."""
        log_norm_N1 = raw.norm_N1.log()
        if not with_entropy:
            return Sums(raw.reference_N1, log_norm_N1, None)
        unit = LN_2 if has_slow_exp() else 1.0
        # Both terms are >= 0.
        entropy_N1 = log_norm_N1 - raw.mean_N1 / raw.norm_N1 * unit
        return Sums(raw.reference_N1, log_norm_N1, entropy_N1.masked_fill_(raw.reference_N1 == -math.inf, 0.0))

    def slope(
        self,
        sums: Sums,
        coefficient_N: torch.Tensor,
        entropy: tuple[torch.Tensor, torch.Tensor] | None,
        temperature: float,
        dtype: torch.dtype,
    ) -> Slope:
        """The gradient share_v * (coefficient - h (log share_v + H)) with share = softmax(z / T), `entropy` = (h, H).

        `dtype`: that of the logits and of the gradient.
        """
        # Where nothing is left of a row, every entry of it is -inf.
        is_empty_N1 = sums.shift_N1 == -math.inf
        shift_N1 = sums.shift_N1.masked_fill(is_empty_N1, 0.0)
        log_norm_N1 = sums.log_norm_N1.masked_fill(is_empty_N1, 0.0)
        factor_N1 = coefficient_N[:, None] / log_norm_N1.exp()
        if entropy is None:
            return Slope(shift_N1, factor_N1)
        h_N, entropy_N = entropy
        return Slope(shift_N1, factor_N1, -h_N[:, None] / log_norm_N1.exp(), entropy_N[:, None] - log_norm_N1)

    def write_gradient(
        self,
        logits_MV: torch.Tensor,
        grad_MV: torch.Tensor,
        rows: RowIndex,
        rooms: Rooms,
        temperature: float,
        slope: Slope,
    ) -> None:
        """The gradient of one chunk. Entries above the shift, those that the sweep left out, get anything."""
        room_CV, other_CV = (room[: count(rows)] for room in rooms)
        in_place = isinstance(rows, slice) and grad_MV.dtype == room_CV.dtype
        logits_CV = read(logits_MV, rows, room_CV)
        if slope.h_N1 is None or slope.offset_N1 is None:
            grad_CV = grad_MV[rows] if in_place else room_CV  # one room is enough, and stays in the caches
            torch.sub(logits_CV, slope.shift_N1, out=grad_CV)
            exponentials(grad_CV, temperature, grad_CV)
            grad_CV.mul_(slope.factor_N1)
        else:
            grad_CV = grad_MV[rows] if in_place else other_CV
            torch.sub(logits_CV, slope.shift_N1, out=room_CV)
            unit = exponentials(room_CV, temperature, grad_CV)
            room_CV.mul_(unit).clamp_(min=LOG_ZERO).add_(slope.offset_N1)
            grad_CV.mul_(room_CV.mul_(slope.h_N1).add_(slope.factor_N1))
        if not in_place:
            store(grad_MV, rows, grad_CV)


def store(grad_MV: torch.Tensor, rows: RowIndex, grad_CV: torch.Tensor) -> None:
    """Write a chunk of the gradient to its rows."""
    if isinstance(rows, slice):
        grad_MV[rows] = grad_CV
    else:
        grad_MV.index_copy_(0, rows, grad_CV.to(grad_MV.dtype))


@functools.cache
def has_slow_exp() -> bool:
    """Whether exp2 pays on this CPU: torch leaves exp to MKL, which is slow on AMD's, and computes exp2 by itself."""
    try:
        return torch.backends.mkl.is_available() and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def exponentials(shifted_CV: torch.Tensor, temperature: float, out_CV: torch.Tensor) -> float:
    """Fill `out_CV`, which may be the input, with exp(shifted / temperature).

    The input, if it is another tensor, is left as exponents; returned is the unit that makes nats of them.
    """
    if shifted_CV.device.type == "cpu" and has_slow_exp():
        torch.exp2(shifted_CV.mul_(1.0 / (LN_2 * temperature)), out=out_CV)
        return LN_2
    torch.exp(shifted_CV if temperature == 1.0 else shifted_CV.div_(temperature), out=out_CV)
    return 1.0

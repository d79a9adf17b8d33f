"""Passes over the logits of a chunk of tokens, and the only place where devices differ.

A sweep reduces every row to a shift and a norm with logsumexp(z / T) = shift / T + log_norm, and to an entropy.
`Passes` is for a CPU, whose caches hold a chunk from pass to pass. `AcceleratorPasses` is for devices that cast in
registers, have a softmax in one kernel and take longer to launch one than to read a few rows. `CompiledPasses` lets
`torch.compile` make one kernel of every pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from srpo_verl.algos.buckets import LOG_ZERO
from srpo_verl.algos.rows import Rows, accumulation_dtype, count, entries, load, read

LN_2 = math.log(2.0)
NARROW = (torch.bfloat16, torch.float16)

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
        rows: Rows,
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
        rows: Rows,
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


class AcceleratorPasses(Passes):
    """On a GPU or its like: torch's softmax kernel, and casts in the registers of the kernels that read."""

    # 48 MiB in fp32: about what the second-level caches of today's GPUs hold (40 to 60 MB), for the passes of a
    # softmax over its row; and several times as long as a launch.
    chunk_elements = 3 * 2**22
    topk_rows = 512
    block_elements = 2**22

    def chunk_rows(self, num_tokens: int, vocab_size: int, chunk_size: int | None) -> int:
        return max(1, self.chunk_elements // vocab_size) if chunk_size is None else chunk_size

    def raw(self, logits_MV: torch.Tensor, num_tokens: int) -> Raw:
        raw = super().raw(logits_MV, num_tokens)
        # The place of the largest logit.
        return raw._replace(reference_N1=torch.zeros(num_tokens, 1, dtype=torch.int64, device=logits_MV.device))

    def sweep(
        self,
        logits_MV: torch.Tensor,
        rows: Rows,
        rooms: Rooms,
        temperature: float,
        with_entropy: bool,
        without_CK: torch.Tensor | None,
        out: Raw,
    ) -> None:
        room_CV, shares_CV = (room[: count(rows)] for room in rooms)
        if without_CK is None:
            logits_CV = read(logits_MV, rows, room_CV, any_dtype=True)
        else:
            logits_CV = load(logits_MV, rows, room_CV).scatter_(1, without_CK, -math.inf)
        torch.argmax(logits_CV, dim=-1, keepdim=True, out=out.reference_N1)
        if temperature != 1.0:
            # Shift before scaling: no rounding of large logits enters.
            torch.sub(logits_CV, logits_CV.gather(1, out.reference_N1), out=room_CV)
            logits_CV = room_CV.div_(temperature)
        elif logits_CV.dtype != room_CV.dtype:
            logits_CV = room_CV.copy_(logits_CV)
        torch.softmax(logits_CV, -1, out=shares_CV)
        torch.gather(shares_CV, 1, out.reference_N1, out=out.norm_N1)
        if with_entropy:
            torch.sum(torch.special.entr(shares_CV, out=shares_CV), dim=-1, keepdim=True, out=out.mean_N1)

    def finish(
        self, raw: Raw, logits_MV: torch.Tensor, rows_N: torch.Tensor | None, temperature: float, with_entropy: bool
    ) -> Sums:
        shift_N1 = entries(logits_MV, rows_N, raw.reference_N1)
        # Nothing is left: no NaN or +inf among the logits, yet no softmax.
        shift_N1 = shift_N1.masked_fill(raw.norm_N1.isnan() & shift_N1.isfinite(), -math.inf)
        entropy_N1 = raw.mean_N1.masked_fill(shift_N1 == -math.inf, 0.0) if with_entropy else None
        return Sums(shift_N1, -raw.norm_N1.log(), entropy_N1)

    def label_sums(
        self, logits_MV: torch.Tensor, rows: Rows, rooms: Rooms, labels_C1: torch.Tensor, out_C1: torch.Tensor
    ) -> None:
        """log p(label) at temperature 1, in a pass less than `sweep`: NaN where the row is not finite."""
        room_CV, log_p_CV = (room[: count(rows)] for room in rooms)
        torch.log_softmax(load(logits_MV, rows, room_CV), -1, out=log_p_CV)
        torch.gather(log_p_CV, 1, labels_C1, out=out_C1)

    def slope(
        self,
        sums: Sums,
        coefficient_N: torch.Tensor,
        entropy: tuple[torch.Tensor, torch.Tensor] | None,
        temperature: float,
        dtype: torch.dtype,
    ) -> Slope:
        if entropy is not None or dtype not in NARROW:
            return super().slope(sums, coefficient_N, entropy, temperature, dtype)
        # The coefficient goes into the exponent, so that the exponential is rounded to the narrow dtype once; its sign
        # on top of that is exact. The shift is rounded in fp32, far below that dtype's own distances.
        log_size_N1 = sums.log_norm_N1 - coefficient_N[:, None].abs().log()
        shift_N1 = sums.shift_N1 + temperature * log_size_N1
        return Slope(shift_N1.masked_fill(sums.shift_N1 == -math.inf, 0.0), coefficient_N[:, None].sign())

    def write_gradient(
        self,
        logits_MV: torch.Tensor,
        grad_MV: torch.Tensor,
        rows: Rows,
        rooms: Rooms,
        temperature: float,
        slope: Slope,
    ) -> None:
        if slope.h_N1 is not None or logits_MV.dtype not in NARROW or not isinstance(rows, slice):
            super().write_gradient(logits_MV, grad_MV, rows, rooms, temperature, slope)
            return
        room_CV = rooms[0][: count(rows)]
        torch.sub(logits_MV[rows], slope.shift_N1, out=room_CV)
        if temperature != 1.0:
            room_CV.div_(temperature)
        torch.exp(room_CV, out=grad_MV[rows]).mul_(slope.factor_N1)


class CompiledPasses(Passes):
    """Every pass compiled into one kernel; the first call of a process waits for the compiler."""

    chunk_elements = 2**25
    topk_rows = AcceleratorPasses.topk_rows
    block_elements = AcceleratorPasses.block_elements

    def chunk_rows(self, num_tokens: int, vocab_size: int, chunk_size: int | None) -> int:
        return max(1, self.chunk_elements // vocab_size) if chunk_size is None else chunk_size

    def rooms(self, logits_MV: torch.Tensor, num_rows: int) -> Rooms:
        return super().rooms(logits_MV, 0)  # kernels need no memory between their steps

    def sweep(
        self,
        logits_MV: torch.Tensor,
        rows: Rows,
        rooms: Rooms,
        temperature: float,
        with_entropy: bool,
        without_CK: torch.Tensor | None,
        out: Raw,
    ) -> None:
        logits_CV = logits_MV[rows]
        if without_CK is not None:
            logits_CV = logits_CV.scatter(1, without_CK, -math.inf)
        function = _sums_and_entropy if with_entropy else _sums
        compiled(function)(logits_CV, 1.0 / temperature, *out)

    def finish(
        self, raw: Raw, logits_MV: torch.Tensor, rows_N: torch.Tensor | None, temperature: float, with_entropy: bool
    ) -> Sums:
        entropy_N1 = raw.mean_N1.masked_fill(raw.reference_N1 == -math.inf, 0.0) if with_entropy else None
        return Sums(raw.reference_N1, raw.norm_N1.log(), entropy_N1)

    def write_gradient(
        self,
        logits_MV: torch.Tensor,
        grad_MV: torch.Tensor,
        rows: Rows,
        rooms: Rooms,
        temperature: float,
        slope: Slope,
    ) -> None:
        parts = [part for part in slope if part is not None]
        with_entropy = slope.h_N1 is not None
        logits_CV = logits_MV[rows]
        if grad_MV is logits_MV or not isinstance(rows, slice):
            function = _entropy_gradient_in_place if with_entropy else _gradient_in_place
            compiled(function)(logits_CV, 1.0 / temperature, *parts)
            if not isinstance(rows, slice):
                store(grad_MV, rows, logits_CV)
            return
        compiled(_entropy_gradient if with_entropy else _gradient)(logits_CV, grad_MV[rows], 1.0 / temperature, *parts)


def store(grad_MV: torch.Tensor, rows: Rows, grad_CV: torch.Tensor) -> None:
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


# --- compiled: one kernel each ---------------------------------------------------------------------------------------


@functools.cache
def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """The function as `torch.compile` makes it, for any number of rows."""
    return torch.compile(function, dynamic=True, fullgraph=True)


def _sums(logits_CV, per_temperature, shift_C1, norm_C1, mean_C1):
    z_CV = logits_CV.to(shift_C1.dtype)
    top_C1 = z_CV.amax(dim=-1, keepdim=True)
    norm_C1.copy_(((z_CV - top_C1) * per_temperature).exp().sum(dim=-1, keepdim=True))
    shift_C1.copy_(top_C1)


def _sums_and_entropy(logits_CV, per_temperature, shift_C1, norm_C1, entropy_C1):
    z_CV = logits_CV.to(shift_C1.dtype)
    top_C1 = z_CV.amax(dim=-1, keepdim=True)
    exponents_CV = (z_CV - top_C1) * per_temperature
    weights_CV = exponents_CV.exp()
    total_C1 = weights_CV.sum(dim=-1, keepdim=True)
    mean_C1 = (weights_CV * exponents_CV.clamp(min=LOG_ZERO)).sum(dim=-1, keepdim=True)
    shift_C1.copy_(top_C1)
    norm_C1.copy_(total_C1)
    entropy_C1.copy_(total_C1.log() - mean_C1 / total_C1)


def _gradient(logits_CV, out_CV, per_temperature, shift_C1, factor_C1):
    e_CV = ((logits_CV.to(shift_C1.dtype) - shift_C1) * per_temperature).exp()
    out_CV.copy_(e_CV * factor_C1)


def _entropy_gradient(logits_CV, out_CV, per_temperature, shift_C1, factor_C1, h_C1, offset_C1):
    exponents_CV = (logits_CV.to(shift_C1.dtype) - shift_C1) * per_temperature
    out_CV.copy_(exponents_CV.exp() * (factor_C1 + h_C1 * (exponents_CV.clamp(min=LOG_ZERO) + offset_C1)))


def _gradient_in_place(logits_CV, *arguments):
    _gradient(logits_CV, logits_CV, *arguments)


def _entropy_gradient_in_place(logits_CV, *arguments):
    _entropy_gradient(logits_CV, logits_CV, *arguments)


# --- which -----------------------------------------------------------------------------------------------------------

CPU, ACCELERATOR, COMPILED = Passes(), AcceleratorPasses(), CompiledPasses()


def passes_for(device: torch.device, compile_kernels: bool) -> Passes:
    """The passes that suit a device."""
    if compile_kernels:
        return COMPILED
    return CPU if device.type == "cpu" else ACCELERATOR

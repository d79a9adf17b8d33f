"""Passes that `torch.compile` makes one kernel of each, in whatever language suits the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from srpo_verl.algos.accelerator_passes import AcceleratorPasses
from srpo_verl.algos.buckets import LOG_ZERO
from srpo_verl.algos.passes import Passes, Raw, Rooms, Slope, Sums, store
from srpo_verl.algos.rows import RowIndex


class CompiledPasses(Passes):
    """Every pass compiled into one kernel; the first call of a process waits for the compiler."""

    # A call of compiled code takes the host some 0.2 ms, as long as the kernel needs for hundreds of rows. On an H200
    # the engine's calls took 0.80 of their time with four times 2**25, and 0.87 with sixteen times.
    chunk_elements = 2**27
    topk_rows = AcceleratorPasses.topk_rows
    block_elements = AcceleratorPasses.block_elements

    def chunk_rows(self, num_tokens: int, vocab_size: int, chunk_size: int | None) -> int:
        return max(1, self.chunk_elements // vocab_size) if chunk_size is None else chunk_size

    def rooms(self, logits_MV: torch.Tensor, num_rows: int) -> Rooms:
        return super().rooms(logits_MV, 0)  # kernels need no memory between their steps

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
        rows: RowIndex,
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

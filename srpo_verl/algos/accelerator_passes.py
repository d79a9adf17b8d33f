"""Passes for a GPU or its like: torch's softmax kernel, and casts in the registers of the kernels that read."""

from __future__ import annotations

import math

import torch

from srpo_verl.algos.passes import Passes, Raw, Rooms, Slope, Sums
from srpo_verl.algos.rows import RowIndex, count, entries, load, read

NARROW = (torch.bfloat16, torch.float16)


class AcceleratorPasses(Passes):
    """A launch costs more than to read a few rows: few kernels, over as many rows as a second-level cache holds."""

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
        rows: RowIndex,
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
        self, logits_MV: torch.Tensor, rows: RowIndex, rooms: Rooms, labels_C1: torch.Tensor, out_C1: torch.Tensor
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
        rows: RowIndex,
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

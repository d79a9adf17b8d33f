"""Helpers of the functions over logits: passing over N tokens in chunks, and the checks they share.

A chunk of logits is cast up into a scratch buffer that all chunks share; passes over it then stay in a fast memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import torch

# Elements of one chunk in the accumulation dtype, unless a single row (on a CPU: one row per thread) is larger. A CPU
# wants its caches (1 to 4 MiB), an accelerator kernels that last longer than their launch (64 MiB).
CPU_CHUNK_ELEMENTS = 2**18
LARGE_CPU_CHUNK_ELEMENTS = 2**20
ACCELERATOR_CHUNK_ELEMENTS = 2**24
# The larger chunks of a CPU are for those who have this many: scratch memory stays a small share of the logits.
MANY_CHUNKS = 128
LN_2 = math.log(2.0)

Rows = slice | torch.Tensor
"""Rows of a matrix: a contiguous run, or int64 indices."""


def rows_per_chunk(num_tokens: int, vocab_size: int, device: torch.device, chunk_size: int | None) -> int:
    """`chunk_size`, or for None what suits the device."""
    if chunk_size is not None:
        return chunk_size
    if device.type != "cpu":
        return max(1, ACCELERATOR_CHUNK_ELEMENTS // vocab_size)
    large = min(LARGE_CPU_CHUNK_ELEMENTS // vocab_size, num_tokens // MANY_CHUNKS)
    # Reductions run one row per thread.
    return max(torch.get_num_threads(), CPU_CHUNK_ELEMENTS // vocab_size, large)


def token_chunks(num_tokens: int, chunk_size: int) -> Iterator[slice]:
    """Cut `num_tokens` into slices of `chunk_size`."""
    for start in range(0, num_tokens, chunk_size):
        yield slice(start, min(start + chunk_size, num_tokens))


def pick(index: torch.Tensor | None, tokens: slice) -> Rows:
    """Where the tokens of a chunk stand: `index[tokens]`, or `tokens` itself where there is no index."""
    # Narrow integers would index as a mask.
    return tokens if index is None else index[tokens].long()


def part_of(rows: Rows, part: slice) -> Rows:
    """Some of the rows."""
    return slice(rows.start + part.start, rows.start + part.stop) if isinstance(rows, slice) else rows[part]


def entries(logits_MV: torch.Tensor, rows: Rows, ids_CK: torch.Tensor) -> torch.Tensor:
    """Single logits, in the accumulation dtype: (C, K)."""
    picked_CK = logits_MV[rows].gather(1, ids_CK) if isinstance(rows, slice) else logits_MV[rows[:, None], ids_CK]
    return picked_CK.to(accumulation_dtype(logits_MV.dtype))


def scratch(logits_MV: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the exponents and the exponentials of one chunk in the accumulation dtype, for all chunks of a pass."""
    dtype = accumulation_dtype(logits_MV.dtype)
    logits_CV = torch.empty(num_rows, logits_MV.shape[1], dtype=dtype, device=logits_MV.device)
    return logits_CV, torch.empty_like(logits_CV)


def load(logits_MV: torch.Tensor, rows: Rows, out_CV: torch.Tensor) -> torch.Tensor:
    """Copy the rows' logits to the first rows of `out_CV` and return these, (C, V) and free to overwrite."""
    if isinstance(rows, slice):
        return out_CV[: rows.stop - rows.start].copy_(logits_MV[rows])
    out_CV = out_CV[: len(rows)]
    if logits_MV.dtype == out_CV.dtype:
        return torch.index_select(logits_MV, 0, rows, out=out_CV)
    return out_CV.copy_(logits_MV.index_select(0, rows))


def read(logits_MV: torch.Tensor, rows: Rows, room_CV: torch.Tensor) -> torch.Tensor:
    """The rows' logits in the accumulation dtype, (C, V), to be read only: a view where they are that already."""
    in_place = isinstance(rows, slice) and logits_MV.dtype == room_CV.dtype
    return logits_MV[rows] if in_place else load(logits_MV, rows, room_CV)


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


def sweep(
    logits_MV: torch.Tensor,
    rows: Rows,
    rooms: tuple[torch.Tensor, torch.Tensor],
    temperature: float,
    *,
    with_entropy: bool,
    without_CK: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One pass over the rows' logits, as many at a time as `rooms` (of `scratch`) hold.

    Returns (max z, log sum_v exp((z_v - max z) / temperature), entropy of the softmax in nats where asked for), each
    (C,). With ids `without_CK` these entries are left out. Where nothing is left: (-inf, NaN, 0).
    """
    count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
    max_C1, total_C1, mean_C1 = torch.zeros(3, count, 1, dtype=rooms[0].dtype, device=logits_MV.device)
    unit = 1.0
    for part in token_chunks(count, max(1, len(rooms[0]))):
        here, max_R1 = part_of(rows, part), max_C1[part]
        room_RV, weights_RV = (room[: len(max_R1)] for room in rooms)
        if without_CK is None:
            logits_RV = read(logits_MV, here, room_RV)
        else:
            logits_RV = load(logits_MV, here, room_RV).scatter_(1, without_CK[part], -math.inf)
        torch.amax(logits_RV, dim=-1, keepdim=True, out=max_R1)
        # Shift before scaling and before the products: no rounding of large logits enters them then.
        torch.sub(logits_RV, max_R1, out=room_RV)
        weights_RV = weights_RV if with_entropy else room_RV
        unit = exponentials(room_RV, temperature, weights_RV)
        torch.sum(weights_RV, dim=-1, keepdim=True, out=total_C1[part])
        if with_entropy:
            # nansum: 0 * -inf counts as 0.
            torch.nansum(weights_RV.mul_(room_RV), dim=-1, keepdim=True, out=mean_C1[part])
    max_C, total_C, mean_C = max_C1[:, 0], total_C1[:, 0], mean_C1[:, 0]
    log_norm_C = total_C.log()
    if not with_entropy:
        return max_C, log_norm_C, None
    # Both terms are >= 0.
    return max_C, log_norm_C, (log_norm_C - mean_C / total_C * unit).masked_fill_(max_C == -math.inf, 0.0)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in: fp32 for fp32 and narrower inputs, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_logits(name: str, logits_NV: torch.Tensor) -> None:
    """Raise ValueError unless the tensor is a floating-point N x V matrix with V >= 1."""
    if logits_NV.dim() != 2 or logits_NV.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, V) with V >= 1, got {tuple(logits_NV.shape)}")
    if not logits_NV.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {logits_NV.dtype}")


def check_positions(positions_N: torch.Tensor | None, logits_MV: torch.Tensor) -> int:
    """The number of tokens N; ValueError unless positions are None (N = M) or one-dimensional integers in [0, M)."""
    if positions_N is None:
        return logits_MV.shape[0]
    if positions_N.dim() != 1:
        raise ValueError(f"positions_N must have shape (N,), got {tuple(positions_N.shape)}")
    check_ids("positions_N", positions_N, logits_MV.shape[0])
    return len(positions_N)


def check_ids(name: str, ids: torch.Tensor, limit: int) -> None:
    """Raise ValueError unless the tensor holds integers in [0, limit)."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must hold integer ids, got {ids.dtype}")
    if ids.numel() == 0:
        return
    smallest, largest = (int(end) for end in torch.aminmax(ids))
    if smallest < 0 or largest >= limit:
        raise ValueError(f"{name} must hold ids in [0, {limit}), got ids from {smallest} to {largest}")


def check_support(support_NK: torch.Tensor, num_tokens: int, vocab_size: int) -> None:
    """Raise ValueError unless `support_NK` holds integer ids in [0, V) and has one row per token."""
    if support_NK.dim() != 2 or support_NK.shape[0] != num_tokens or not 1 <= support_NK.shape[1] <= vocab_size:
        raise ValueError(
            f"support_NK must have shape (N={num_tokens}, K) with 1 <= K <= V={vocab_size}, "
            f"got {tuple(support_NK.shape)}"
        )
    check_ids("support_NK", support_NK, vocab_size)


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

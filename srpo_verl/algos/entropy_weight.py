"""Equation (4), paper §3.2: entropy-aware dynamic weighting."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist


@torch.no_grad()
def entropy_weights(
    entropy_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    beta: float = 1.0,
    floor: float = 0.0,
    process_group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Weights that are large where the teacher is sure. Equation (4), paper §3.2.

        w~ = max(floor, exp(-beta * H)),    w = w~ / mean of w~ over Omega

    where Omega is the set of all valid response tokens routed to SDPO in the optimizer mini-batch: the True entries of
    the mask of *all* ranks of `process_group`. So call it once per mini-batch, not once per micro-batch. The mean of w
    over Omega is 1; beta = 0 gives exactly 1. The paper has no floor. Without one the smallest entropy of Omega is
    subtracted from H first: that cancels in w, and no beta * H is too large then.

    With a process group this is a collective of two small all-reduces: every rank must call it, also one whose mask
    is empty. What is wrong on one rank raises on every rank, after the first all-reduce, so that none is left waiting.

    Args:
        entropy_BT: full-vocabulary entropies of the teacher in nats; any shape, for instance packed (N,). Entries
            outside the mask are not read; they may be NaN.
        mask_BT: bool (or 0/1) of the same shape: the rank's share of Omega.
        beta: at least 0; how strongly uncertain tokens are discounted. The same on every rank.
        floor: in [0, 1); the least that w~ can be, whatever the entropy. The same on every rank.
        process_group: the ranks whose tokens form Omega; None: this process alone.

    Returns:
        Shape of the entropies, fp32 (float64 for float64), 0 outside the mask, detached.

    Raises:
        ValueError: beta negative or not finite, floor outside [0, 1); here or on another rank, shapes that differ, or
            a NaN or infinite entropy inside the mask (names the index on the rank that has it).
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and not negative, got {beta}")
    if not 0 <= floor < 1:
        raise ValueError(f"floor must be at least 0 and below 1, got {floor}")
    problem = _problem(entropy_BT, mask_BT)
    if problem is None:
        mask_BT = mask_BT.bool()
        exact_M = entropy_BT[mask_BT].double()
    else:
        exact_M = entropy_BT.new_empty(0, dtype=torch.float64)

    # (smallest entropy, 0 or -1 where something is wrong): one minimum over the ranks for both.
    smallest = exact_M.min() if exact_M.numel() else exact_M.new_tensor(math.inf)
    smallest_and_flag = torch.stack([smallest, exact_M.new_tensor(0.0 if problem is None else -1.0)])
    if process_group is not None:
        dist.all_reduce(smallest_and_flag, op=dist.ReduceOp.MIN, group=process_group)
    if problem is not None:
        raise ValueError(problem)
    if float(smallest_and_flag[1]) < 0:
        raise ValueError("entropy_weights failed on another rank of the process group: see its message")

    if floor > 0:
        raw_M = torch.exp(-beta * exact_M).clamp(min=floor)
    else:
        raw_M = torch.exp(-beta * (exact_M - smallest_and_flag[0]))
    sum_and_count = torch.stack([raw_M.sum(), raw_M.new_tensor(float(raw_M.numel()))])
    if process_group is not None:
        dist.all_reduce(sum_and_count, op=dist.ReduceOp.SUM, group=process_group)

    dtype = torch.float64 if entropy_BT.dtype == torch.float64 else torch.float32
    weights_BT = torch.zeros(entropy_BT.shape, dtype=dtype, device=entropy_BT.device)
    weights_BT[mask_BT] = (raw_M * (sum_and_count[1] / sum_and_count[0])).to(dtype)
    return weights_BT


def _problem(entropy_BT: torch.Tensor, mask_BT: torch.Tensor) -> str | None:
    """What is wrong with this rank's tensors, or None."""
    if entropy_BT.shape != mask_BT.shape:
        return f"entropy_BT and mask_BT must agree in shape, got {tuple(entropy_BT.shape)} and {tuple(mask_BT.shape)}"
    bad_BT = mask_BT.bool() & ~torch.isfinite(entropy_BT)
    if bool(bad_BT.any()):
        index = tuple(bad_BT.nonzero()[0].tolist())
        return f"entropy_BT must be finite inside the mask, got {float(entropy_BT[index])} at index {index}"
    return None

"""Weights of prompts by their pass rate, beside equation (4) for tokens. After SC-SDPO, arXiv 2605.27765."""

from __future__ import annotations

import torch
import torch.distributed as dist


@torch.no_grad()
def pass_rate_weights(
    pass_rate_B: torch.Tensor,
    group_B: torch.Tensor,
    sdpo_B: torch.Tensor,
    *,
    process_group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """v = sqrt(p (1 - p)) / mean of it over the prompts that distil.

    A factor of the shares d of equation (5). The mean is over prompts, not rows: over the different groups with a
    distilled row in the optimizer mini-batch, of all ranks of `process_group`. So call it once per mini-batch. Prompts
    that are always or never solved weigh 0.

    With a process group this is a collective of two small all-reduces: every rank must call it.

    Args:
        pass_rate_B: p, floating: share of the row's group that is correct, the same for all rows of a group.
        group_B: int64, number of the group within the training step, at least 0, the same on every rank.
        sdpo_B: bool, the distilled rows; the others are not read and get 0.
        process_group: the ranks whose rows form the mini-batch; None: this process alone.

    Returns:
        float32 of shape (B,).

    Raises:
        ValueError: shapes that are not (B,), `sdpo_B` not bool, a pass rate of a distilled row outside [0, 1].
    """
    for name, tensor in (("group_B", group_B), ("sdpo_B", sdpo_B)):
        if tensor.shape != pass_rate_B.shape or tensor.dim() != 1:
            raise ValueError(f"{name} must have shape {tuple(pass_rate_B.shape)}, got {tuple(tensor.shape)}")
    if sdpo_B.dtype != torch.bool:
        raise ValueError(f"sdpo_B must be bool, got {sdpo_B.dtype}")
    rates_M, groups_M = pass_rate_B[sdpo_B].double(), group_B[sdpo_B]
    if bool(((rates_M < 0) | (rates_M > 1)).any()):
        raise ValueError(f"pass rates must be in [0, 1], got {rates_M.tolist()}")
    raw_M = (rates_M * (1 - rates_M)).sqrt()

    count = groups_M.max() + 1 if groups_M.numel() else groups_M.new_zeros(())
    if process_group is not None:
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=process_group)
    # One entry for every group, -1 where it has no distilled row: a group lies on several ranks, and counts once.
    raw_of_group = raw_M.new_full((int(count),), -1.0)
    raw_of_group[groups_M] = raw_M
    if process_group is not None:
        dist.all_reduce(raw_of_group, op=dist.ReduceOp.MAX, group=process_group)
    distilling = raw_of_group[raw_of_group >= 0]

    weights_B = torch.zeros(pass_rate_B.shape, dtype=torch.float32, device=pass_rate_B.device)
    total = distilling.sum()
    if bool(total > 0):
        weights_B[sdpo_B] = (raw_M * (len(distilling) / total)).float()
    return weights_B

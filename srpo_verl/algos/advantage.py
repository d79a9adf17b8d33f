"""Equation (2), paper §2.1 and §4.1: the group-relative advantage."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from srpo_verl.algos.routing import check_rewards, group_indices


@torch.no_grad()
def group_advantages(
    rewards_B: torch.Tensor,
    group_ids: Sequence[Hashable] | torch.Tensor | Any,
    *,
    normalize_by_std: bool = False,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Reward relative to the mean of the rollout's group. Equation (2), paper §2.1 and §4.1.

        A_i = r_i - mean(r)                              normalize_by_std=False, the paper's choice
        A_i = (r_i - mean(r)) / (std(r) + eps)           normalize_by_std=True

    where mean and std are over the rollouts of the same prompt, std with Bessel's correction. As in veRL, a group of
    one keeps its raw reward: its mean counts as 0 and its std as 1.

    Args:
        rewards_B: one finite scalar per rollout.
        group_ids: B hashable values or a tensor of shape (B,); equal values: same prompt.
        normalize_by_std: divide by the standard deviation.
        eps: added to the standard deviation.

    Returns:
        Shape (B,), in the rewards' dtype (fp32 for integers). Sums are taken in float64, so that a group of equal
        rewards gets advantages of exactly 0.

    Raises:
        ValueError: rewards that are not of shape (B,) or not finite (names the index), a wrong number of ids, a
            negative `eps`.
    """
    rewards_B = torch.as_tensor(rewards_B)
    check_rewards(rewards_B)
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    dtype = rewards_B.dtype if rewards_B.is_floating_point() else torch.float32
    exact_B = rewards_B.double()
    group_B = group_indices(group_ids, rewards_B.shape[0]).to(rewards_B.device)
    # Per-group quantities are indexed by group; there are at most B groups.
    size_B = torch.bincount(group_B, minlength=rewards_B.shape[0])
    is_single_B = size_B == 1

    mean_B = torch.zeros_like(exact_B).index_add(0, group_B, exact_B) / size_B.clamp(min=1)
    mean_B = mean_B.masked_fill(is_single_B, 0.0)
    advantages_B = exact_B - mean_B[group_B]
    if normalize_by_std:
        squares_B = torch.zeros_like(exact_B).index_add(0, group_B, advantages_B.square())
        std_B = (squares_B / (size_B - 1).clamp(min=1)).sqrt().masked_fill(is_single_B, 1.0)
        advantages_B = advantages_B / (std_B[group_B] + eps)
    return advantages_B.to(dtype)

"""The advantage estimator named `srpo` in veRL's registry."""

from __future__ import annotations

from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est

from srpo_verl.functional import group_advantages
from srpo_verl.installation import ESTIMATOR


@register_adv_est(ESTIMATOR)
def group_relative_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: Any, config: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (2) in the form of a veRL estimator: (advantages_BT, returns_BT), equal to each other.

    A row's reward is the sum of its token rewards; `index` holds the group ids. Rows that are distilled get their
    advantage too: which loss a row takes is decided in the loss (verl_ext/loss.py), so that the logged advantages
    are those of the whole group.
    """
    by_std = bool(config.get("norm_adv_by_std_in_grpo", False)) if config is not None else False
    advantages_B = group_advantages(token_level_rewards.sum(dim=-1), index, normalize_by_std=by_std)
    advantages_BT = advantages_B.unsqueeze(-1) * response_mask
    return advantages_BT, advantages_BT

"""Advantage estimator and policy loss named `srpo` in veRL's registries: the GRPO branch."""

from __future__ import annotations

from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss
from verl.utils import torch_functional as verl_F

from srpo_verl.functional import group_advantages, ppo_token_loss, srpo_objective
from srpo_verl.installation import ESTIMATOR, POLICY_LOSS


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


@register_policy_loss(POLICY_LOSS)
def grpo_branch_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The GRPO summand of equation (5): clipped token losses over the mini-batch's number of valid tokens.

    `response_mask` holds the tokens of the GRPO rows only; the denominator, `batch_num_tokens` of all ranks, is the
    mini-batch's whole. The factor dp_size undoes the averaging of gradients over ranks. Shapes (B, T).
    """
    if loss_agg_mode != "token-mean":
        raise ValueError(f"actor_rollout_ref.actor.loss_agg_mode={loss_agg_mode!r}: has to be 'token-mean' (eq. 5)")
    loss_BT, sums = grpo_token_losses(
        old_log_prob, log_prob, advantages, response_mask, config=config, rollout_is_weights=rollout_is_weights
    )
    info = config.global_batch_info
    nobody_B = torch.zeros(loss_BT.shape[0], dtype=torch.bool, device=loss_BT.device)
    zeros_BT = torch.zeros_like(loss_BT)
    loss = srpo_objective(
        loss_BT, zeros_BT, zeros_BT, response_mask.bool(), nobody_B, num_tokens=info["batch_num_tokens"]
    )
    # Of this micro-batch, as in veRL; SrpoLoss divides by the mini-batch's count instead.
    num_local = response_mask.sum() + 1e-8
    return loss * info["dp_size"], {name: (value / num_local).item() for name, value in sums.items()}


def grpo_token_losses(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    config: Any,
    rollout_is_weights: torch.Tensor | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """l^GRPO of every token, equation (2) times the rollout-correction weight, and what is reported of its clipping.

    Shapes (B, T). What is reported are sums over `response_mask`, the tokens of the GRPO rows, by the metric's name;
    the losses are not masked. `config` is the actor's.
    """
    clip_low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    clip_high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    loss_BT = ppo_token_loss(
        log_prob, old_log_prob, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=config.clip_ratio_c
    )
    if rollout_is_weights is not None:
        loss_BT = loss_BT * rollout_is_weights
    with torch.no_grad():
        sums = _clip_sums(old_log_prob, log_prob, advantages, response_mask, clip_low, clip_high, config)
    return loss_BT, sums


def _clip_sums(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    clip_low: float,
    clip_high: float,
    config: Any,
) -> dict[str, torch.Tensor]:
    """What veRL's own policy loss reports the means of: clipped tokens and the approximate KL, summed."""
    log_ratio = (log_prob - old_log_prob).clamp(-20.0, 20.0)
    ratio = log_ratio.exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    lower = torch.maximum(unclipped, clipped) > -advantages * config.clip_ratio_c
    return {
        "actor/pg_clipfrac": verl_F.masked_sum((clipped > unclipped).float(), response_mask),
        "actor/ppo_kl": verl_F.masked_sum(-log_ratio, response_mask),
        "actor/pg_clipfrac_lower": verl_F.masked_sum((lower & (advantages < 0)).float(), response_mask),
    }

"""Equation (2), paper §2.1 and §4.1: the clipped policy loss; and the truncated ratio of equation (3)."""

from __future__ import annotations

import torch

# veRL bounds the log-ratio before it exponentiates it.
MAX_LOG_RATIO = 20.0


def ppo_token_loss(
    log_probs_BT: torch.Tensor,
    old_log_probs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = 3.0,
) -> torch.Tensor:
    """Clipped policy loss of every token, the one of veRL's "vanilla" loss. Equation (2), paper §2.1 and §4.1.

        rho  = exp(clamp(log pi_theta - log pi_old, -20, 20))
        loss = -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)
        loss = min(loss, -dual_clip * A)      where A < 0: the dual clip, an upper bound on the loss

    Args:
        log_probs_BT: log pi_theta of the sampled tokens, nats; the loss is differentiable in it.
        old_log_probs_BT: log pi_old of the same tokens.
        advantages_BT: A, for instance `group_advantages` repeated over the response positions.
        clip_low: distance of the lower clipping bound from 1.
        clip_high: distance of the upper one.
        dual_clip: factor of the dual clip, above 1; None switches it off.

    Returns:
        Shape of the inputs (any shape, all equal), neither masked nor averaged.

    Raises:
        ValueError: shapes that differ; clip_low outside [0, 1], a negative clip_high, a dual_clip not above 1.
    """
    _check_equal_shapes(log_probs_BT=log_probs_BT, old_log_probs_BT=old_log_probs_BT, advantages_BT=advantages_BT)
    if not 0.0 <= clip_low <= 1.0:
        raise ValueError(f"clip_low must be in [0, 1], got {clip_low}")
    if not clip_high >= 0.0:
        raise ValueError(f"clip_high must not be negative, got {clip_high}")
    if dual_clip is not None and not dual_clip > 1.0:
        raise ValueError(f"dual_clip must be above 1 or None, got {dual_clip}")

    ratio_BT = torch.exp((log_probs_BT - old_log_probs_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped_ratio_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_ratio_BT)
    if dual_clip is None:
        return loss_BT
    return torch.where(advantages_BT < 0, torch.minimum(loss_BT, -advantages_BT * dual_clip), loss_BT)


@torch.no_grad()
def importance_ratio(
    log_probs_BT: torch.Tensor, old_log_probs_BT: torch.Tensor, clip: float | None = 2.0
) -> torch.Tensor:
    """Truncated ratio that the distillation loss of a token is multiplied by. Equation (3), appendix B.5.

        min(exp(log pi_theta - log pi_old), clip)

    Args:
        log_probs_BT: log pi_theta of the sampled tokens, nats.
        old_log_probs_BT: log pi_old of the same tokens.
        clip: upper bound; None: no ratio at all, every entry is 1.

    Returns:
        Shape of the inputs (any shape, both equal), detached.

    Raises:
        ValueError: shapes that differ; a clip that is not positive.
    """
    _check_equal_shapes(log_probs_BT=log_probs_BT, old_log_probs_BT=old_log_probs_BT)
    if clip is None:
        return torch.ones_like(log_probs_BT)
    if not clip > 0.0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    return torch.exp(log_probs_BT - old_log_probs_BT).clamp(max=clip)


def _check_equal_shapes(**tensors: torch.Tensor) -> None:
    """Raise ValueError listing the shapes unless all are equal: broadcasting would hide a wrong axis."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal, got {shapes}")

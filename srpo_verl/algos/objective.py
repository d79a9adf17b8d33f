"""Equation (5), paper §3.3: the objective."""

from __future__ import annotations

import math

import torch

from srpo_verl.algos.chunks import accumulation_dtype


def srpo_objective(
    grpo_loss_BT: torch.Tensor,
    sdpo_loss_BT: torch.Tensor,
    weights_BT: torch.Tensor,
    response_mask_BT: torch.Tensor,
    sdpo_B: torch.Tensor,
    *,
    num_tokens: int | float | torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of both branches over one denominator. Equation (5), paper §3.3.

        L = [ sum_{valid GRPO tokens} l^GRPO + sum_{valid SDPO tokens} w * l^SDPO ] / num_tokens

    The branches' sums over several micro-batches add up to the whole as long as all get the same `num_tokens`. Entries
    that are masked, or belong to the other branch, are not read: they may be NaN. An empty branch, an empty mask and a
    batch of no rows contribute a zero that is attached to the graph.

    Controls of the ablation go through the same function. GRPO: `sdpo_B` is False everywhere. SDPO baselines: every
    entry of `grpo_loss_BT` is 0. Advantage Mix: `sdpo_B` is False everywhere, and `grpo_loss_BT` holds
    lambda * l^GRPO + (1 - lambda) * l^SDPO, with l^SDPO = 0 for rows without teacher information.

    Args:
        grpo_loss_BT: l^GRPO of every token, from `ppo_token_loss`.
        sdpo_loss_BT: l^SDPO of every token in nats, from `distillation_loss` (times `importance_ratio`).
        weights_BT: w, from `entropy_weights`; used as a constant.
        response_mask_BT: bool (or 0/1), True for valid response tokens.
        sdpo_B: bool of shape (B,), `Routing.sdpo_B`; the other rows are GRPO's.
        num_tokens: the number of valid response tokens of the optimizer mini-batch, over all its micro-batches and
            ranks; default: those of this batch. Where the gradients of R ranks are averaged instead of added (DDP,
            FSDP), pass that number divided by R.

    Returns:
        Scalar, fp32 (float64 if a loss is).

    Raises:
        ValueError: shapes that differ, `sdpo_B` not bool; `num_tokens` negative, not finite, or 0 though there are
            valid tokens.
    """
    shape = grpo_loss_BT.shape
    if len(shape) != 2:
        raise ValueError(f"grpo_loss_BT must have shape (B, T), got {tuple(shape)}")
    for name, tensor in (
        ("sdpo_loss_BT", sdpo_loss_BT),
        ("weights_BT", weights_BT),
        ("response_mask_BT", response_mask_BT),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name} must have the shape {tuple(shape)} of grpo_loss_BT, got {tuple(tensor.shape)}")
    if sdpo_B.shape != shape[:1] or sdpo_B.dtype != torch.bool:
        raise ValueError(f"sdpo_B must be bool of shape ({shape[0]},), got {sdpo_B.dtype} {tuple(sdpo_B.shape)}")

    valid_BT = response_mask_BT.bool()
    valid_count = int(valid_BT.sum())
    denominator = float(valid_count if num_tokens is None else num_tokens)
    if not (math.isfinite(denominator) and denominator >= 0) or (denominator == 0 and valid_count > 0):
        raise ValueError(f"num_tokens must be the mini-batch's token count, here at least {valid_count}: {num_tokens}")

    dtype = accumulation_dtype(torch.promote_types(grpo_loss_BT.dtype, sdpo_loss_BT.dtype))
    zero = torch.zeros((), dtype=dtype, device=grpo_loss_BT.device)
    # Select before multiplying: 0 * NaN is NaN, in the value and in the gradient.
    is_grpo_BT, is_sdpo_BT = valid_BT & ~sdpo_B[:, None], valid_BT & sdpo_B[:, None]
    grpo_sum = torch.where(is_grpo_BT, grpo_loss_BT.to(dtype), zero).sum()
    selected_weights_BT = torch.where(is_sdpo_BT, weights_BT.detach().to(dtype), zero)
    sdpo_sum = (selected_weights_BT * torch.where(is_sdpo_BT, sdpo_loss_BT.to(dtype), zero)).sum()
    return (grpo_sum + sdpo_sum) / (denominator or 1.0)

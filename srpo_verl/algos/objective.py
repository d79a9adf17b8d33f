"""Equation (5), paper §3.3: the objective."""

from __future__ import annotations

import math

import torch

from srpo_verl.algos.rows import accumulation_dtype


def srpo_objective(
    grpo_loss_BT: torch.Tensor,
    sdpo_loss_BT: torch.Tensor,
    weights_BT: torch.Tensor,
    response_mask_BT: torch.Tensor,
    sdpo_B: torch.Tensor,
    *,
    grpo_B: torch.Tensor | None = None,
    num_tokens: int | float | torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of both branches over one denominator. Equation (5), paper §3.3, with a share of each loss for every row.

        L = [ sum_i g_i sum_t l^GRPO + sum_i d_i sum_t w * l^SDPO ] / num_tokens      sums over valid tokens

    With g = 1 - z and d = z it is the paper's. The branches' sums over several micro-batches add up to the whole as
    long as all get the same `num_tokens`. Entries that are masked, or whose row has a share of 0 of that branch, are
    not read: they may be NaN. An empty branch, an empty mask and a batch of no rows contribute a zero that is attached
    to the graph.

    Args:
        grpo_loss_BT: l^GRPO of every token, from `ppo_token_loss`.
        sdpo_loss_BT: l^SDPO of every token in nats, from `distillation_loss` (times `importance_ratio`).
        weights_BT: w, from `entropy_weights`; used as a constant.
        response_mask_BT: bool (or 0/1), True for valid response tokens.
        sdpo_B: d, of shape (B,): `Routing.sdpo_share_B`; or bool, `Routing.sdpo_B`, which means shares of 0 and 1.
        grpo_B: g, of shape (B,): `Routing.grpo_share_B`, or bool; default: 1 - d, every row's rest.
        num_tokens: the number of valid response tokens of the optimizer mini-batch, over all its micro-batches and
            ranks; default: those of this batch. Where the gradients of R ranks are averaged instead of added (DDP,
            FSDP), pass that number divided by R.

    Returns:
        Scalar, fp32 (float64 if a loss is).

    Raises:
        ValueError: shapes that differ; shares that are neither bool nor floating, negative or not finite; `num_tokens`
            negative, not finite, or 0 though there are valid tokens.
    """
    grpo, sdpo = objective_summands(
        grpo_loss_BT, sdpo_loss_BT, weights_BT, response_mask_BT, sdpo_B, grpo_B=grpo_B, num_tokens=num_tokens
    )
    return grpo + sdpo


def objective_summands(
    grpo_loss_BT: torch.Tensor,
    sdpo_loss_BT: torch.Tensor,
    weights_BT: torch.Tensor,
    response_mask_BT: torch.Tensor,
    sdpo_B: torch.Tensor,
    *,
    grpo_B: torch.Tensor | None = None,
    num_tokens: int | float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two summands of equation (5), GRPO's and SDPO's, for where they are wanted apart.

    Arguments and results as of `srpo_objective`, which is their sum.

    Raises:
        ValueError: as `srpo_objective`.
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
    dtype = accumulation_dtype(torch.promote_types(grpo_loss_BT.dtype, sdpo_loss_BT.dtype))
    sdpo_B = _shares("sdpo_B", sdpo_B, shape[0], dtype)
    grpo_B = 1 - sdpo_B if grpo_B is None else _shares("grpo_B", grpo_B, shape[0], dtype)

    valid_BT = response_mask_BT.bool()
    valid_count = int(valid_BT.sum())
    denominator = float(valid_count if num_tokens is None else num_tokens)
    if not (math.isfinite(denominator) and denominator >= 0) or (denominator == 0 and valid_count > 0):
        raise ValueError(f"num_tokens must be the mini-batch's token count, here at least {valid_count}: {num_tokens}")
    denominator = denominator or 1.0

    in_sdpo_BT = valid_BT & (sdpo_B > 0)[:, None]
    zero = torch.zeros((), dtype=dtype, device=grpo_loss_BT.device)
    selected_weights_BT = torch.where(in_sdpo_BT, weights_BT.detach().to(dtype), zero)
    return (
        _weighted_sum(grpo_loss_BT.to(dtype), valid_BT & (grpo_B > 0)[:, None], grpo_B, None, denominator),
        _weighted_sum(sdpo_loss_BT.to(dtype), in_sdpo_BT, sdpo_B, selected_weights_BT, denominator),
    )


def _weighted_sum(
    loss_BT: torch.Tensor,
    selected_BT: torch.Tensor,
    shares_B: torch.Tensor,
    weights_BT: torch.Tensor | None,
    denominator: float,
) -> torch.Tensor:
    """sum_i share_i sum_t (weight) loss / denominator, over the selected entries."""
    # Select before multiplying: 0 * NaN is NaN, in the value and in the gradient.
    terms_BT = torch.where(selected_BT, loss_BT, loss_BT.new_zeros(()))
    if weights_BT is not None:
        terms_BT = weights_BT * terms_BT
    # The largest share stands before the sum: rows that all have the same one are summed unscaled, to the last bit.
    largest = shares_B.max() if shares_B.numel() else shares_B.new_zeros(())
    relative_B = shares_B / torch.where(largest > 0, largest, 1.0)
    return (relative_B[:, None] * terms_BT).sum() / denominator * largest


def _shares(name: str, shares_B: torch.Tensor, batch_size: int, dtype: torch.dtype) -> torch.Tensor:
    """A row's shares in the dtype of the sums; 0 and 1 where they were False and True."""
    right_type = shares_B.dtype == torch.bool or shares_B.is_floating_point()
    if shares_B.shape != (batch_size,) or not right_type:
        raise ValueError(
            f"{name} must be bool of shape ({batch_size},), or shares of that shape, got {shares_B.dtype} "
            f"{tuple(shares_B.shape)}"
        )
    shares_B = shares_B.to(dtype)
    bad_B = ~(torch.isfinite(shares_B) & (shares_B >= 0))
    if bool(bad_B.any()):
        index = int(bad_B.nonzero()[0])
        raise ValueError(f"{name}: shares must be finite and at least 0, got {float(shares_B[index])} in row {index}")
    return shares_B

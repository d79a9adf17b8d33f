"""The gradient of the fused pass: the sweep's part by chunks, single entries on top of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from srpo_verl.algos.buckets import LOG_ZERO, bucket_slope
from srpo_verl.algos.distilled_block import Distilled
from srpo_verl.algos.passes import Rooms, Sums
from srpo_verl.algos.rows import cut
from srpo_verl.algos.work import Plan, Work


class Upstream(NamedTuple):
    """Gradients that reach a block's log-probabilities, divergences and entropies, and what they are of."""

    g_C: torch.Tensor
    f_C: torch.Tensor
    h_C: torch.Tensor | None
    entropy_C: torch.Tensor | None
    labels_C: torch.Tensor | None
    log_probs_C: torch.Tensor | None

    @property
    def entropy(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if self.h_C is None or self.entropy_C is None else (self.h_C, self.entropy_C)


def busy_places(work: Work, f_W: torch.Tensor, g_W: torch.Tensor | None, h_W: torch.Tensor | None) -> torch.Tensor:
    """The places that a gradient reaches, on the host: the synchronisation of the backward pass."""
    busy_W = f_W != 0
    busy_W[: work.num_plain] = False
    for grad_W in (g_W, h_W):
        if grad_W is not None:
            busy_W |= grad_W != 0
    return busy_W.cpu().nonzero().flatten()


def write_zeros(grad_MV: torch.Tensor, work: Work, keep_W: torch.Tensor) -> None:
    """Zeros for the rows that no gradient reaches."""
    if len(keep_W) == len(grad_MV):
        return
    is_idle_M = torch.ones(len(grad_MV), dtype=torch.bool)
    is_idle_M[work.rows_W[keep_W]] = False
    for _, rows in cut(is_idle_M.nonzero().flatten(), len(grad_MV), grad_MV.device):
        if isinstance(rows, slice):
            grad_MV[rows].zero_()
        else:
            grad_MV.index_fill_(0, rows, 0.0)


def gradient_of_one(up: Upstream, log_p_C: torch.Tensor) -> torch.Tensor:
    """-p (g + h (log p + H)) of one token per row."""
    p_C = log_p_C.exp()
    if up.h_C is None or up.entropy_C is None:
        return -p_C * up.g_C
    return -p_C * (up.g_C + up.h_C * (log_p_C.clamp(min=LOG_ZERO) + up.entropy_C))


def write_share(
    logits_MV: torch.Tensor,
    grad_MV: torch.Tensor,
    block: slice,
    rooms: Rooms,
    plan: Plan,
    sums: Sums,
    coefficient_C: torch.Tensor,
    entropy: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """The part of the gradient that is a multiple of the sweep's softmax, for a block of places."""
    slope = plan.passes.slope(sums.pick(block), coefficient_C, entropy, plan.temperature, logits_MV.dtype)
    for where, rows in plan.work.pieces(block, plan.chunk_rows):
        plan.passes.write_gradient(logits_MV, grad_MV, rows, rooms, plan.temperature, slope.of(where))


def write_distilled(
    logits_MV: torch.Tensor,
    grad_MV: torch.Tensor,
    block: slice,
    rows_C: torch.Tensor,
    rooms: Rooms,
    plan: Plan,
    sums: Sums,
    part: Distilled,
    up: Upstream,
) -> None:
    """The gradient of a block of distilled tokens."""
    slope_CJ = bucket_slope(part.log_p_CJ, part.log_q_CJ, plan.alpha)
    bucket_CJ = slope_CJ - part.log_p_CJ.exp() * slope_CJ.sum(dim=-1, keepdim=True)
    bucket_CJ *= up.f_C[:, None]
    log_p_CK = part.logits_CK - part.lse_C[:, None]
    per_token = Upstream(*(None if values is None else values[:, None] for values in up))  # type: ignore[arg-type]
    values_CK = bucket_CJ[:, : part.ids_CK.shape[1]] + gradient_of_one(per_token, log_p_CK)
    tail_C = bucket_CJ[:, -1] if plan.has_tail else None

    if part.log_rest_C is None:
        for _, rows in plan.work.pieces(block, len(grad_MV)):
            if isinstance(rows, slice):
                grad_MV[rows].zero_()
            else:
                grad_MV.index_fill_(0, rows, 0.0)
    else:
        rest_C = part.log_rest_C.exp()
        coefficient_C = -up.g_C * rest_C + (0.0 if tail_C is None else tail_C)
        entropy = None
        if up.h_C is not None and up.entropy_C is not None:
            # log p = log share + log p_rest
            entropy = (up.h_C * rest_C, up.entropy_C + part.log_rest_C.clamp(min=LOG_ZERO))
        write_share(logits_MV, grad_MV, block, rooms, plan, sums, coefficient_C, entropy)
    ids_CJ = part.ids_CK
    if up.labels_C is not None and up.log_probs_C is not None:
        is_label_CK = part.ids_CK == up.labels_C[:, None]
        values_CK = values_CK + up.g_C[:, None] * is_label_CK
        off_C = up.g_C + gradient_of_one(up, up.log_probs_C)
        if tail_C is not None and part.log_rest_C is not None:
            share_C = torch.where(up.log_probs_C == -math.inf, 0.0, (up.log_probs_C - part.log_rest_C).exp())
            off_C = off_C + tail_C * share_C
        on_C = (values_CK * is_label_CK).sum(dim=-1)
        label_C = torch.where(is_label_CK.any(dim=-1), on_C, off_C)
        # A label of the support is there twice, with the same value.
        ids_CJ = torch.cat([part.ids_CK, up.labels_C[:, None]], dim=-1)
        values_CK = torch.cat([values_CK, label_C[:, None]], dim=-1)
    put(grad_MV, rows_C, ids_CJ, values_CK)


def put(grad_MV: torch.Tensor, rows_C: torch.Tensor, ids_CJ: torch.Tensor, values_CJ: torch.Tensor) -> None:
    """Single entries of the gradient, rounded once."""
    grad_MV.index_put_((rows_C[:, None], ids_CJ), values_CJ.to(grad_MV.dtype))

"""A block of distilled tokens: its buckets, from the support's logits and the sums off the support."""

from __future__ import annotations

from typing import NamedTuple

import torch

from srpo_verl.algos.buckets import LOG_ZERO, student_buckets, teacher_buckets
from srpo_verl.algos.passes import Sums
from srpo_verl.algos.rows import entries
from srpo_verl.algos.work import Plan


class Distilled(NamedTuple):
    """A block of distilled tokens: log-probabilities of its buckets, and what leads to them."""

    ids_CK: torch.Tensor
    logits_CK: torch.Tensor
    """Of the support, shifted and scaled."""
    shift_C: torch.Tensor
    log_p_CJ: torch.Tensor
    log_q_CJ: torch.Tensor
    log_mass_C: torch.Tensor
    lse_C: torch.Tensor
    """Over the vocabulary, relative to the shift and after the temperature."""
    log_rest_C: torch.Tensor | None
    """Log-probability of the tokens off the support; None: they were not visited."""


def distilled_block(
    logits_MV: torch.Tensor,
    rows_C: torch.Tensor,
    ids_CK: torch.Tensor,
    teacher_CK: torch.Tensor,
    rest: Sums | None,
    plan: Plan,
) -> Distilled:
    """The buckets of a block."""
    logits_CK = entries(logits_MV, rows_C, ids_CK)
    shift_C = logits_CK.amax(dim=-1)
    shift_C = shift_C.masked_fill(~torch.isfinite(shift_C), 0.0)
    logits_CK = logits_CK.sub_(shift_C[:, None]).div_(plan.temperature)
    rest_lse_C = None
    if rest is not None:
        # The logsumexp off the support; infinite where the maximum is (empty, +inf).
        lse_C = (rest.shift_N - shift_C) / plan.temperature + rest.log_norm_N
        rest_lse_C = torch.where(torch.isinf(rest.shift_N), rest.shift_N, lse_C)
    log_p_CJ, lse_C = student_buckets(logits_CK, rest_lse_C if plan.has_tail else None)
    log_q_CJ, log_mass_C = teacher_buckets(teacher_CK, log_p_CJ, plan.has_tail)
    if rest_lse_C is not None and not plan.has_tail:
        lse_C = torch.logaddexp(lse_C, rest_lse_C)
    log_rest_C = None if rest_lse_C is None else rest_lse_C - lse_C
    return Distilled(ids_CK, logits_CK, shift_C, log_p_CJ, log_q_CJ, log_mass_C, lse_C, log_rest_C)


def block_entropy(part: Distilled, rest: Sums | None) -> torch.Tensor:
    """Chain rule of the entropy: the support's tokens and the rest as one bucket, then within the rest."""
    entropy_C = -p_log_p(part.logits_CK - part.lse_C[:, None]).sum(dim=-1)
    if rest is not None and rest.entropy_N1 is not None and part.log_rest_C is not None:
        entropy_C += part.log_rest_C.exp() * rest.entropy_N1[:, 0] - p_log_p(part.log_rest_C)
    return entropy_C


def p_log_p(log_p: torch.Tensor) -> torch.Tensor:
    """p log p, 0 where p is 0."""
    return log_p.exp() * log_p.clamp(min=LOG_ZERO)

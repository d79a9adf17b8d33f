"""Equation (3) on buckets, the support's tokens and the tail: tensors of size K, nothing of size V."""

from __future__ import annotations

import math

import torch

# Log-probability (nats) at and below which a bucket counts as masked out: it stands in for log 0 = -inf, is constant,
# and no gradient flows through it.
LOG_ZERO = -1.0e4
# The teacher's probabilities on the support may add up to this much, to allow for rounding of narrow dtypes.
MAX_TEACHER_MASS = 1.05


def bucket_divergence(log_p_CJ: torch.Tensor, log_q_CJ: torch.Tensor, alpha: float) -> torch.Tensor:
    """Equation (3) over J buckets: (C, J) log-probabilities of student and teacher, all finite, to (C,) nats."""
    p_CJ, q_CJ = log_p_CJ.exp(), log_q_CJ.exp()
    if alpha == 0.0:
        return (q_CJ * (log_q_CJ - log_p_CJ)).sum(dim=-1)
    if alpha == 1.0:
        return (p_CJ * (log_p_CJ - log_q_CJ)).sum(dim=-1)
    log_m_CJ = _log_mixture(log_p_CJ, log_q_CJ, alpha)
    student_C = (p_CJ * (log_p_CJ - log_m_CJ)).sum(dim=-1)
    teacher_C = (q_CJ * (log_q_CJ - log_m_CJ)).sum(dim=-1)
    return (1.0 - alpha) * student_C + alpha * teacher_C


def bucket_slope(log_p_CJ: torch.Tensor, log_q_CJ: torch.Tensor, alpha: float) -> torch.Tensor:
    """dD / d log p_b of `bucket_divergence`, (C, J), up to a multiple of p_b.

        alpha = 0        -q_b            (0 where log p_b is held at LOG_ZERO)
        alpha = 1        p_b (log p_b - log q_b)
        0 < alpha < 1    (1-alpha) p_b (log p_b - log m_b);  the derivatives of log m_b add up to 0

    A multiple of p_b in it changes nothing: sum_b p_b = 1 for every value of the logits.
    """
    if alpha == 0.0:
        return -log_q_CJ.exp().masked_fill(log_p_CJ <= LOG_ZERO, 0.0)
    if alpha == 1.0:
        return log_p_CJ.exp() * (log_p_CJ - log_q_CJ)
    return (1.0 - alpha) * log_p_CJ.exp() * (log_p_CJ - _log_mixture(log_p_CJ, log_q_CJ, alpha))


def _log_mixture(log_p_CJ: torch.Tensor, log_q_CJ: torch.Tensor, alpha: float) -> torch.Tensor:
    """log m_b of the mixture m = (1-alpha) p + alpha q, for 0 < alpha < 1."""
    return torch.logaddexp(log_p_CJ + math.log1p(-alpha), log_q_CJ + math.log(alpha))


def student_buckets(logits_CK: torch.Tensor, tail_lse_C: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p of the buckets, logsumexp over the buckets) from the support's logits and the logsumexp off it."""
    lse_C = torch.logsumexp(logits_CK, dim=-1)
    if tail_lse_C is not None:
        lse_C = torch.logaddexp(lse_C, tail_lse_C)
        logits_CK = torch.cat([logits_CK, tail_lse_C[:, None]], dim=-1)
    return (logits_CK - lse_C[:, None]).clamp_(min=LOG_ZERO), lse_C


def teacher_buckets(
    log_probs_CK: torch.Tensor, log_p_CJ: torch.Tensor, has_tail: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log q of the buckets, log of the teacher's mass on the support)."""
    # The mass is only as exact as the list it is summed from, whose entries share a logsumexp of a few roundings.
    resolution = 4 * max(torch.finfo(log_probs_CK.dtype).eps, torch.finfo(log_p_CJ.dtype).eps)
    log_probs_CK = log_probs_CK.to(log_p_CJ.dtype)
    log_mass_C = torch.logsumexp(log_probs_CK, dim=-1)
    if not has_tail:
        return (log_probs_CK - log_mass_C[:, None]).clamp_(min=LOG_ZERO), log_mass_C
    tail_C = -torch.expm1(log_mass_C)
    unresolved_C = log_p_CJ[:, -1].clamp(max=math.log(resolution))
    log_tail_C = torch.where(tail_C > resolution, tail_C.clamp(min=resolution).log(), unresolved_C)
    return torch.cat([log_probs_CK, log_tail_C[:, None]], dim=-1).clamp_(min=LOG_ZERO), log_mass_C


def not_a_part(log_mass_N: torch.Tensor, has_tail: bool) -> torch.Tensor:
    """Where the teacher's probabilities cannot be a part of a distribution: bool (N,)."""
    is_part_N = log_mass_N <= math.log(MAX_TEACHER_MASS)  # False for NaN
    if not has_tail:
        is_part_N &= log_mass_N > -math.inf  # nothing to renormalise
    return ~is_part_N


def raise_on_teacher_mass(name: str, log_mass_N: torch.Tensor, has_tail: bool) -> None:
    """ValueError naming the first such row, of which there is one."""
    row = int(not_a_part(log_mass_N, has_tail).nonzero()[0])
    raise ValueError(
        f"{name} must hold log-probabilities: those of row {row} sum to a probability of "
        f"{math.exp(float(log_mass_N[row]))}"
    )

"""Equation (3), paper §2.2 and appendix B.5: the divergence between student and self-teacher, token by token."""

from __future__ import annotations

import math

import torch
from torch.autograd.function import once_differentiable

from srpo_verl.algos.chunks import (
    accumulation_dtype,
    check_logits,
    check_support,
    check_temperature_and_chunk,
    raise_on_bad_row,
    token_chunks,
)

# Log-probability (nats) at and below which a bucket counts as masked out: it stands in for log 0 = -inf, is constant,
# and no gradient flows through it.
LOG_ZERO = -1.0e4
# The teacher's probabilities on the support may add up to this much, to allow for rounding of narrow dtypes.
MAX_TEACHER_MASS = 1.05


def distillation_loss(
    student_logits_NV: torch.Tensor,
    support_NK: torch.Tensor,
    teacher_log_probs_NK: torch.Tensor,
    *,
    alpha: float = 0.5,
    tail: bool = True,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Divergence between the student p and the teacher q for every token. Equation (3), paper §2.2, appendix B.5.

        alpha = 0        D = KL(q || p) = sum_b q_b (log q_b - log p_b)                         forward KL
        alpha = 1        D = KL(p || q) = sum_b p_b (log p_b - log q_b)                         reverse KL
        0 < alpha < 1    D = (1-alpha) KL(p || m) + alpha KL(q || m),  m = (1-alpha) p + alpha q;
                         alpha = 0.5 is the Jensen-Shannon divergence

    where p = softmax(student_logits / temperature) and b runs over the buckets: the K tokens of the support and,

    * with `tail`, one bucket that holds the remaining probability of the V - K other tokens. The student's is summed
      from its logits; the teacher's is 1 - sum_b q_b. At K = V there is no remainder and no tail bucket.
    * without `tail`, no other bucket: p and q are renormalised to sum to 1 over the support.

    So D >= 0, and D = 0 where p = q on all buckets. Differentiable once, in the student's logits only. Memory beyond
    the inputs: the gradient in the logits' dtype and a few chunks in fp32; backward recomputes what forward knew.

    Numerical limits: a log-probability below -10^4 nats (masked vocabulary) counts as -10^4 and as constant, so that
    a support token that only one side masks costs 10^4 nats times the other's probability instead of infinity. A
    teacher tail below the resolution of `teacher_log_probs_NK` (1.2e-7 in fp32) counts as the student's tail or as
    that resolution, whichever is smaller.

    Args:
        student_logits_NV: logits, any floating dtype; single entries may be -inf.
        support_NK: integer ids in [0, V), distinct in each row; from `topk_support`.
        teacher_log_probs_NK: the teacher's full-vocabulary log-probabilities of the support, nats; entries may be
            -inf; from `score_teacher`.
        alpha: in [0, 1], see above.
        tail: whether the tail bucket is there.
        temperature: the student's logits are divided by it. `teacher_log_probs_NK` has its own already.
        chunk_size: tokens cast up at a time; None: as many as fit into `chunks.DEFAULT_CHUNK_ELEMENTS`.

    Returns:
        Loss in nats, shape (N,), fp32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, ids outside [0, V), alpha outside [0, 1], a temperature or chunk size that is not
            positive; student logits with NaN or +inf, or nothing but -inf, in a row (names the first); teacher
            log-probabilities with NaN or with a sum of probabilities above 1.05 (names the first row).
    """
    check_logits("student_logits_NV", student_logits_NV)
    check_support(support_NK, student_logits_NV)
    check_temperature_and_chunk(temperature, chunk_size)
    if teacher_log_probs_NK.shape != support_NK.shape or not teacher_log_probs_NK.is_floating_point():
        raise ValueError(
            f"teacher_log_probs_NK must be floating point of the support's shape {tuple(support_NK.shape)}, "
            f"got {teacher_log_probs_NK.dtype} of shape {tuple(teacher_log_probs_NK.shape)}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    has_tail = tail and support_NK.shape[1] < student_logits_NV.shape[1]
    return _DistillationLoss.apply(
        student_logits_NV, support_NK, teacher_log_probs_NK.detach(), alpha, has_tail, temperature, chunk_size
    )


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


def _off_support_logits(
    logits_CV: torch.Tensor, ids_CK: torch.Tensor, shift_C: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The chunk's shifted and scaled logits in the accumulation dtype, with -inf on the support."""
    shifted_CV = logits_CV.to(shift_C.dtype, copy=True).sub_(shift_C[:, None]).div_(temperature)
    return shifted_CV.scatter_(1, ids_CK, -math.inf)


def _support_logits(
    logits_CV: torch.Tensor, ids_CK: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(shifted and scaled logits of the support, the shift): the shift is the largest logit of the support, so that
    no rounding of large logits enters the probabilities; 0 where that is not finite."""
    logits_CK = logits_CV.gather(1, ids_CK).to(accumulation_dtype(logits_CV.dtype))
    shift_C = logits_CK.amax(dim=-1)
    shift_C = shift_C.masked_fill(~torch.isfinite(shift_C), 0.0)
    return logits_CK.sub_(shift_C[:, None]).div_(temperature), shift_C


def _student_buckets(logits_CK: torch.Tensor, tail_lse_C: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p of the buckets, logsumexp over the buckets) from the support's logits and the logsumexp off it."""
    lse_C = torch.logsumexp(logits_CK, dim=-1)
    if tail_lse_C is not None:
        lse_C = torch.logaddexp(lse_C, tail_lse_C)
        logits_CK = torch.cat([logits_CK, tail_lse_C[:, None]], dim=-1)
    return (logits_CK - lse_C[:, None]).clamp_(min=LOG_ZERO), lse_C


def _teacher_buckets(
    log_probs_CK: torch.Tensor, log_p_CJ: torch.Tensor, has_tail: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log q of the buckets, log of the teacher's mass on the support)."""
    # The mass is only as exact as the list it is summed from.
    resolution = max(torch.finfo(log_probs_CK.dtype).eps, torch.finfo(log_p_CJ.dtype).eps)
    log_probs_CK = log_probs_CK.to(log_p_CJ.dtype)
    log_mass_C = torch.logsumexp(log_probs_CK, dim=-1)
    if not has_tail:
        return (log_probs_CK - log_mass_C[:, None]).clamp_(min=LOG_ZERO), log_mass_C
    tail_C = -torch.expm1(log_mass_C)
    unresolved_C = log_p_CJ[:, -1].clamp(max=math.log(resolution))
    log_tail_C = torch.where(tail_C > resolution, tail_C.clamp(min=resolution).log(), unresolved_C)
    return torch.cat([log_probs_CK, log_tail_C[:, None]], dim=-1).clamp_(min=LOG_ZERO), log_mass_C


class _DistillationLoss(torch.autograd.Function):
    """`distillation_loss` with an analytic gradient, chunk by chunk over the tokens.

    With slope_b = dD / d log p_b and S = sum_b slope_b, the chain rule through the softmax gives

        dD/dz_v = slope_v - p_v S                             v in the support: a bucket of its own
        dD/dz_v = (slope_tail - p_tail S) * p_v / p_tail      v elsewhere: its share of the tail bucket
        dD/dz_v = 0                                           v elsewhere, without a tail bucket

    p_v / p_tail is a softmax over the tokens off the support; backward needs only its logsumexp from forward.
    """

    @staticmethod
    def forward(
        ctx,
        logits_NV: torch.Tensor,
        support_NK: torch.Tensor,
        teacher_log_probs_NK: torch.Tensor,
        alpha: float,
        has_tail: bool,
        temperature: float,
        chunk_size: int | None,
    ) -> torch.Tensor:
        num_tokens, vocab_size = logits_NV.shape
        loss_N = torch.empty(num_tokens, dtype=accumulation_dtype(logits_NV.dtype), device=logits_NV.device)
        lse_N, log_mass_N = torch.empty_like(loss_N), torch.empty_like(loss_N)
        tail_lse_N = torch.empty_like(loss_N) if has_tail else None
        for rows in token_chunks(num_tokens, vocab_size, chunk_size):
            ids_CK = support_NK[rows].long()
            logits_CK, shift_C = _support_logits(logits_NV[rows], ids_CK, temperature)
            tail_lse_C = None
            if tail_lse_N is not None:
                off_support_CV = _off_support_logits(logits_NV[rows], ids_CK, shift_C, temperature)
                tail_lse_C = tail_lse_N[rows] = torch.logsumexp(off_support_CV, dim=-1)
            log_p_CJ, lse_N[rows] = _student_buckets(logits_CK, tail_lse_C)
            log_q_CJ, log_mass_N[rows] = _teacher_buckets(teacher_log_probs_NK[rows], log_p_CJ, has_tail)
            # Mathematically >= 0 already; rounding can leave a -1e-8.
            loss_N[rows] = bucket_divergence(log_p_CJ, log_q_CJ, alpha).clamp_(min=0.0)
        raise_on_bad_row("student_logits_NV", lse_N)
        _check_teacher_mass(log_mass_N, has_tail)

        ctx.save_for_backward(logits_NV, support_NK, teacher_log_probs_NK, tail_lse_N)
        ctx.alpha, ctx.temperature, ctx.chunk_size = alpha, temperature, chunk_size
        return loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss_N: torch.Tensor):
        logits_NV, support_NK, teacher_log_probs_NK, tail_lse_N = ctx.saved_tensors
        has_tail = tail_lse_N is not None
        num_tokens, vocab_size = logits_NV.shape
        num_support = support_NK.shape[1]
        grad_NV = torch.empty_like(logits_NV) if has_tail else torch.zeros_like(logits_NV)
        for rows in token_chunks(num_tokens, vocab_size, ctx.chunk_size):
            ids_CK = support_NK[rows].long()
            logits_CK, shift_C = _support_logits(logits_NV[rows], ids_CK, ctx.temperature)
            tail_lse_C = tail_lse_N[rows] if has_tail else None
            log_p_CJ, _ = _student_buckets(logits_CK, tail_lse_C)
            log_q_CJ, _ = _teacher_buckets(teacher_log_probs_NK[rows], log_p_CJ, has_tail)
            slope_CJ = bucket_slope(log_p_CJ, log_q_CJ, ctx.alpha)
            bucket_grad_CJ = slope_CJ - log_p_CJ.exp() * slope_CJ.sum(dim=-1, keepdim=True)
            bucket_grad_CJ *= grad_loss_N[rows, None] / ctx.temperature
            support_grad_CK = bucket_grad_CJ[:, :num_support]
            if tail_lse_C is None:
                grad_NV[rows].scatter_(1, ids_CK, support_grad_CK.to(grad_NV.dtype))
                continue
            # Where the tail is empty every logit off the support is -inf: subtract 0, so that its share is exp(-inf).
            tail_share_CV = _off_support_logits(logits_NV[rows], ids_CK, shift_C, ctx.temperature)
            tail_share_CV.sub_(tail_lse_C.masked_fill(tail_lse_C == -math.inf, 0.0)[:, None]).exp_()
            tail_share_CV.mul_(bucket_grad_CJ[:, num_support:]).scatter_(1, ids_CK, support_grad_CK)
            grad_NV[rows] = tail_share_CV.to(grad_NV.dtype)
        return grad_NV, None, None, None, None, None, None


def _check_teacher_mass(log_mass_N: torch.Tensor, has_tail: bool) -> None:
    """Raise ValueError naming the first row whose teacher probabilities cannot be a part of a distribution."""
    is_part_N = log_mass_N <= math.log(MAX_TEACHER_MASS)  # False for NaN
    if not has_tail:
        is_part_N &= log_mass_N > -math.inf  # nothing to renormalise
    if not bool(is_part_N.all()):
        row = int((~is_part_N).nonzero()[0])
        raise ValueError(
            f"teacher_log_probs_NK must hold log-probabilities: those of row {row} sum to a probability of "
            f"{math.exp(float(log_mass_N[row]))}"
        )

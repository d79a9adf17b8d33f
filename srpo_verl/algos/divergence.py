"""Equation (3), paper §2.2 and appendix B.5: the divergence between student and self-teacher, token by token."""

from __future__ import annotations

import torch

from srpo_verl.algos.token_losses import Names, Options, losses_of


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
    teacher tail below the resolution of `teacher_log_probs_NK` (four roundings, 4.8e-7 in fp32) counts as the
    student's tail or as that resolution, whichever is smaller.

    Args:
        student_logits_NV: logits, any floating dtype; single entries may be -inf.
        support_NK: integer ids in [0, V), distinct in each row; from `topk_support`.
        teacher_log_probs_NK: the teacher's full-vocabulary log-probabilities of the support, nats; entries may be
            -inf; from `score_teacher`.
        alpha: in [0, 1], see above.
        tail: whether the tail bucket is there.
        temperature: the student's logits are divided by it. `teacher_log_probs_NK` has its own already.
        chunk_size: tokens cast up at a time; None: what suits the device, see `passes`.

    Returns:
        Loss in nats, shape (N,), fp32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, ids outside [0, V), alpha outside [0, 1], a temperature or chunk size that is not
            positive; student logits with NaN or +inf, or nothing but -inf, in a row (names the first; without
            `tail` only the support is read); teacher log-probabilities with NaN or with a sum of probabilities above
            1.05 (names the first row).
    """
    return losses_of(
        student_logits_NV,
        None,
        None,
        None,
        support_NK,
        teacher_log_probs_NK,
        Options(alpha, tail, temperature, chunk_size=chunk_size),
        Names("student_logits_NV", "support_NK", "teacher_log_probs_NK"),
    ).divergence_N

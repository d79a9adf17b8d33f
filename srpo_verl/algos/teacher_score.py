"""What the student and the self-teacher hand to equations (3) and (4): support, log-probabilities, entropy."""

from __future__ import annotations

import torch

from srpo_verl.algos.chunks import (
    accumulation_dtype,
    check_logits,
    check_support,
    check_temperature_and_chunk,
    raise_on_bad_row,
    token_chunks,
)


@torch.no_grad()
def topk_support(student_logits_NV: torch.Tensor, k: int | None) -> torch.Tensor:
    """Ids of the student's k most likely tokens: the support of the divergence, equation (3), appendix B.5.

    Args:
        student_logits_NV: logits, any floating dtype.
        k: K; None: the full vocabulary, in id order, as an expanded view that takes no memory.

    Returns:
        int64 of shape (N, K), distinct ids in each row, most likely first.

    Raises:
        ValueError: k < 1 or k > V; a row that holds NaN or +inf, or nothing but -inf (names the first).
    """
    check_logits("student_logits_NV", student_logits_NV)
    num_tokens, vocab_size = student_logits_NV.shape
    if k is None:
        raise_on_bad_row("student_logits_NV", student_logits_NV.amax(dim=-1))
        return torch.arange(vocab_size, device=student_logits_NV.device).expand(num_tokens, vocab_size)
    if not 1 <= k <= vocab_size:
        raise ValueError(f"k must be between 1 and V={vocab_size} (None: full vocabulary), got {k}")
    top_NK = torch.topk(student_logits_NV, k, dim=-1)
    raise_on_bad_row("student_logits_NV", top_NK.values[:, 0])  # topk ranks NaN above every number
    return top_NK.indices


@torch.no_grad()
def score_teacher(
    teacher_logits_NV: torch.Tensor,
    support_NK: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's log-probabilities on the support, and its entropy over the full vocabulary.

        log q(v) = z_v / temperature - logsumexp(z / temperature)        for v in the support; equation (3), §2.2
        H = -sum_{v in V} q(v) log q(v)                                  over all V tokens;    equation (4), §3.2

    The logits are cast up chunk by chunk, so that no N x V copy of them exists. An entry of -inf (masked vocabulary)
    is a token of probability 0: its log-probability is -inf and it adds nothing to H.

    Args:
        teacher_logits_NV: logits, any floating dtype; no gradient flows into them.
        support_NK: integer ids in [0, V), one row per token.
        temperature: the logits are divided by it.
        chunk_size: tokens cast up at a time; None: as many as fit into `chunks.DEFAULT_CHUNK_ELEMENTS`.

    Returns:
        (log_probs_NK, entropy_N), both in nats, both fp32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, ids outside [0, V), a temperature or chunk size that is not positive; a row that
            holds NaN or +inf, or nothing but -inf (names the first).
    """
    check_logits("teacher_logits_NV", teacher_logits_NV)
    check_support(support_NK, teacher_logits_NV)
    check_temperature_and_chunk(temperature, chunk_size)
    num_tokens, vocab_size = teacher_logits_NV.shape
    dtype, device = accumulation_dtype(teacher_logits_NV.dtype), teacher_logits_NV.device

    log_probs_NK = torch.empty(support_NK.shape, dtype=dtype, device=device)
    entropy_N = torch.empty(num_tokens, dtype=dtype, device=device)
    max_N = torch.empty(num_tokens, dtype=dtype, device=device)
    for rows in token_chunks(num_tokens, vocab_size, chunk_size):
        shifted_CV = teacher_logits_NV[rows].to(dtype, copy=True)
        max_C = shifted_CV.amax(dim=-1)
        shifted_CV.sub_(max_C[:, None]).div_(temperature)
        mass_CV = shifted_CV.exp()
        total_C = mass_CV.sum(dim=-1)
        log_total_C = total_C.log()

        max_N[rows] = max_C
        log_probs_NK[rows] = shifted_CV.gather(1, support_NK[rows].long()) - log_total_C[:, None]
        # Both terms are >= 0: log q = shifted - log_total, and shifted <= 0. The smallest finite number stands in
        # for -inf, because 0 * finite = 0.
        shifted_CV.clamp_(min=torch.finfo(dtype).min)
        entropy_N[rows] = log_total_C - mass_CV.mul_(shifted_CV).sum(dim=-1) / total_C
    raise_on_bad_row("teacher_logits_NV", max_N)
    return log_probs_NK, entropy_N

"""What the student and the self-teacher hand to equations (3) and (4): support, log-probabilities, entropy."""

from __future__ import annotations

import torch

from srpo_verl.algos.chunks import (
    check_logits,
    check_positions,
    check_support,
    check_temperature_and_chunk,
    entries,
    pick,
    raise_on_bad_row,
    rows_per_chunk,
    scratch,
    sweep,
    token_chunks,
)

# The blocks of `_topk`: the maxima cost V / BLOCK_SIZE candidates, the chosen blocks K * BLOCK_SIZE.
BLOCK_SIZE = 16
# Tokens whose candidates are in memory at once.
TOPK_ROWS = 64


@torch.no_grad()
def topk_support(
    student_logits_MV: torch.Tensor, k: int | None, *, positions_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Ids of the student's k most likely tokens: the support of the divergence, equation (3), appendix B.5.

    Args:
        student_logits_MV: logits, any floating dtype.
        positions_N: rows of the logits that predict the N tokens; None: all rows, M = N.
        k: K; None: the full vocabulary, in id order, as an expanded view that takes no memory.

    Returns:
        int64 of shape (N, K), distinct ids in each row, most likely first.

    Raises:
        ValueError: k < 1 or k > V; a row that holds NaN or +inf, or nothing but -inf (names the first).
    """
    check_logits("student_logits", student_logits_MV)
    num_tokens, vocab_size = check_positions(positions_N, student_logits_MV), student_logits_MV.shape[1]
    if k is None:
        largest_M = student_logits_MV.amax(dim=-1)
        raise_on_bad_row("student_logits", largest_M[pick(positions_N, slice(0, num_tokens))])
        return torch.arange(vocab_size, device=student_logits_MV.device).expand(num_tokens, vocab_size)
    if not 1 <= k <= vocab_size:
        raise ValueError(f"k must be between 1 and V={vocab_size} (None: full vocabulary), got {k}")
    ids_NK = torch.empty(num_tokens, k, dtype=torch.int64, device=student_logits_MV.device)
    largest_N = torch.empty(num_tokens, dtype=student_logits_MV.dtype, device=student_logits_MV.device)
    for tokens in token_chunks(num_tokens, TOPK_ROWS):
        largest_N[tokens], ids_NK[tokens] = _topk(student_logits_MV[pick(positions_N, tokens)], k)
    raise_on_bad_row("student_logits", largest_N)  # topk ranks NaN above every number
    return ids_NK


def _topk(logits_CV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(largest logit, ids of the k largest in descending order) of every row.

    The k largest entries lie in the k blocks with the largest maxima, whatever the partition of the row into blocks.
    """
    num_rows, vocab_size = logits_CV.shape
    width = vocab_size // BLOCK_SIZE
    if width <= k:
        top_CK = torch.topk(logits_CV, k, dim=-1)
        return top_CK.values[:, 0], top_CK.indices
    # Block b holds the entries b, b + width, b + 2 width, ...; entries after the last full block are candidates too.
    blocks = torch.topk(logits_CV[:, : width * BLOCK_SIZE].view(num_rows, BLOCK_SIZE, width).amax(1), k, sorted=False)
    offsets = torch.arange(BLOCK_SIZE, device=logits_CV.device) * width
    remainder = torch.arange(width * BLOCK_SIZE, vocab_size, device=logits_CV.device).expand(num_rows, -1)
    candidates = torch.cat([(blocks.indices[:, :, None] + offsets).flatten(1), remainder], dim=1)
    top_CK = torch.topk(logits_CV.gather(1, candidates), k, dim=-1)
    return top_CK.values[:, 0], candidates.gather(1, top_CK.indices)


@torch.no_grad()
def score_teacher(
    teacher_logits_MV: torch.Tensor,
    support_NK: torch.Tensor,
    *,
    positions_N: torch.Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's log-probabilities on the support, and its entropy over the full vocabulary.

        log q(v) = z_v / temperature - logsumexp(z / temperature)        for v in the support; equation (3), §2.2
        H = -sum_{v in V} q(v) log q(v)                                  over all V tokens;    equation (4), §3.2

    The logits are cast up chunk by chunk, so that no N x V copy of them exists. An entry of -inf (masked vocabulary)
    is a token of probability 0: its log-probability is -inf and it adds nothing to H.

    Args:
        teacher_logits_MV: logits, any floating dtype; no gradient flows into them.
        support_NK: integer ids in [0, V), one row per token.
        positions_N: rows of the logits that predict the N tokens; None: all rows, M = N.
        temperature: the logits are divided by it.
        chunk_size: tokens cast up at a time; None: what suits the device, see `chunks`.

    Returns:
        (log_probs_NK, entropy_N), both in nats, both fp32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, ids outside [0, V), a temperature or chunk size that is not positive; a row that
            holds NaN or +inf, or nothing but -inf (names the first).
    """
    check_logits("teacher_logits", teacher_logits_MV)
    num_tokens, vocab_size = check_positions(positions_N, teacher_logits_MV), teacher_logits_MV.shape[1]
    check_support(support_NK, num_tokens, vocab_size)
    check_temperature_and_chunk(temperature, chunk_size)
    chunk_rows = rows_per_chunk(num_tokens, vocab_size, teacher_logits_MV.device, chunk_size)
    rows = pick(positions_N, slice(0, num_tokens))
    rooms = scratch(teacher_logits_MV, min(chunk_rows, num_tokens))
    max_N, log_norm_N, entropy_N = sweep(teacher_logits_MV, rows, rooms, temperature, with_entropy=True)
    assert entropy_N is not None  # it was asked for
    raise_on_bad_row("teacher_logits", max_N)
    log_probs_NK = entries(teacher_logits_MV, rows, support_NK.long()).sub_(max_N[:, None])
    return log_probs_NK.div_(temperature).sub_(log_norm_N[:, None]), entropy_N

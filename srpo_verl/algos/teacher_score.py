"""What the student and the self-teacher hand to equations (3) and (4): support, log-probabilities, entropy."""

from __future__ import annotations

import torch

from srpo_verl.algos.checks import (
    Findings,
    check_logits,
    check_positions,
    check_support_shape,
    check_temperature_and_chunk,
    in_range,
    raise_on_bad_row,
)
from srpo_verl.algos.device import passes_for
from srpo_verl.algos.rows import cut, entries

# The blocks of `_topk`: the maxima cost V / BLOCK_SIZE candidates, the chosen blocks K * BLOCK_SIZE.
BLOCK_SIZE = 16


@torch.no_grad()
def topk_support(
    student_logits_NV: torch.Tensor, k: int | None, *, positions_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Ids of the student's k most likely tokens: the support of the divergence, equation (3), appendix B.5.

    Args:
        student_logits_NV: logits, any floating dtype; with positions, of M rows.
        positions_N: rows of the logits that predict the N tokens, best on the host; None: all rows.
        k: K; None: the full vocabulary, in id order, as an expanded view that takes no memory.

    Returns:
        int64 of shape (N, K), distinct ids in each row, most likely first.

    Raises:
        ValueError: k < 1 or k > V; a row that holds NaN or +inf, or nothing but -inf (names the first).
    """
    check_logits("student_logits_NV", student_logits_NV)
    rows_N, vocab_size = check_positions(positions_N, student_logits_NV), student_logits_NV.shape[1]
    device = student_logits_NV.device
    if k is not None and not 1 <= k <= vocab_size:
        raise ValueError(f"k must be between 1 and V={vocab_size} (None: full vocabulary), got {k}")
    if k is None:
        ids_NK = torch.arange(vocab_size, device=device).expand(len(rows_N), vocab_size)
    else:
        ids_NK = torch.empty(len(rows_N), k, dtype=torch.int64, device=device)
    largest_N = torch.empty(len(rows_N), dtype=student_logits_NV.dtype, device=device)
    for tokens, rows in cut(rows_N, passes_for(device, False).topk_rows, device):
        if k is None:
            torch.amax(student_logits_NV[rows], dim=-1, out=largest_N[tokens])
        else:
            largest_N[tokens], ids_NK[tokens] = _topk(student_logits_NV[rows], k)
    _raise_unless_finite("student_logits_NV", largest_N)  # topk ranks NaN above every number
    return ids_NK


def _raise_unless_finite(name: str, reduced_N: torch.Tensor) -> None:
    findings = Findings()
    findings.add(~torch.isfinite(reduced_N), lambda: raise_on_bad_row(name, reduced_N))
    findings.settle()


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
    teacher_logits_NV: torch.Tensor,
    support_NK: torch.Tensor,
    *,
    positions_N: torch.Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    compile_kernels: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's log-probabilities on the support, and its entropy over the full vocabulary.

        log q(v) = z_v / temperature - logsumexp(z / temperature)        for v in the support; equation (3), §2.2
        H = -sum_{v in V} q(v) log q(v)                                  over all V tokens;    equation (4), §3.2

    The logits are cast up chunk by chunk, so that no N x V copy of them exists. An entry of -inf (masked vocabulary)
    is a token of probability 0: its log-probability is -inf and it adds nothing to H.

    Args:
        teacher_logits_NV: logits, any floating dtype, with positions of M rows; no gradient flows into them.
        support_NK: integer ids in [0, V), one row per token.
        positions_N: rows of the logits that predict the N tokens, best on the host; None: all rows.
        temperature: the logits are divided by it.
        chunk_size: tokens cast up at a time; None: what suits the device, see `passes`.
        compile_kernels: let `torch.compile` make one kernel of every pass over a chunk; same results.

    Returns:
        (log_probs_NK, entropy_N), both in nats, both fp32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shapes, ids outside [0, V), a temperature or chunk size that is not positive; a row that
            holds NaN or +inf, or nothing but -inf (names the first).
    """
    check_logits("teacher_logits_NV", teacher_logits_NV)
    rows_N, vocab_size = check_positions(positions_N, teacher_logits_NV), teacher_logits_NV.shape[1]
    device, findings = teacher_logits_NV.device, Findings()
    check_support_shape("support_NK", support_NK, len(rows_N), vocab_size)
    check_temperature_and_chunk(temperature, chunk_size)
    support_NK = in_range("support_NK", support_NK, vocab_size, findings)
    passes = passes_for(device, compile_kernels)
    chunk_rows = passes.chunk_rows(len(rows_N), vocab_size, chunk_size)
    raw, rooms = passes.raw(teacher_logits_NV, len(rows_N)), passes.rooms(teacher_logits_NV, chunk_rows)
    for tokens, rows in cut(rows_N, chunk_rows, device):
        passes.sweep(teacher_logits_NV, rows, rooms, temperature, True, None, raw.of(tokens))
    index_N = rows_N.to(device, non_blocking=True)
    sums = passes.finish(raw, teacher_logits_NV, index_N, temperature, with_entropy=True)
    findings.add(~torch.isfinite(sums.shift_N1), lambda: raise_on_bad_row("teacher_logits_NV", sums.shift_N))
    findings.settle()
    assert sums.entropy_N1 is not None  # it was asked for
    log_probs_NK = entries(teacher_logits_NV, index_N, support_NK).sub_(sums.shift_N1)
    return log_probs_NK.div_(temperature).sub_(sums.log_norm_N1), sums.entropy_N1[:, 0]

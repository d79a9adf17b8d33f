"""Everything a loss needs of the student's logits, in one pass forward and one pass backward."""

from __future__ import annotations

from typing import NamedTuple

import torch

from srpo_verl.algos.checks import (
    Findings,
    check_logits,
    check_positions,
    check_support_shape,
    check_temperature_and_chunk,
    distinct,
    in_range,
)
from srpo_verl.algos.device import passes_for
from srpo_verl.algos.fused import FusedLosses
from srpo_verl.algos.work import Plan, make_work


class TokenLosses(NamedTuple):
    """Per-token quantities of shape (N,), fp32 (float64 for float64 logits), differentiable in the logits."""

    log_probs_N: torch.Tensor
    """log pi(label), nats; empty without labels."""
    divergence_N: torch.Tensor
    """Equation (3), nats; 0 for tokens that are not distilled."""
    entropy_N: torch.Tensor
    """-sum_v p_v log p_v over the full vocabulary, nats; empty unless asked for."""


def token_losses(
    student_logits_MV: torch.Tensor,
    labels_N: torch.Tensor | None,
    *,
    positions_N: torch.Tensor | None = None,
    distilled_N: torch.Tensor | None = None,
    support_SK: torch.Tensor | None = None,
    teacher_log_probs_SK: torch.Tensor | None = None,
    alpha: float = 0.5,
    tail: bool = True,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunk_size: int | None = None,
    inplace_backward: bool = False,
    compile_kernels: bool = False,
) -> TokenLosses:
    """Log-probability, divergence to the teacher and entropy of N tokens. Equation (3) and the log pi of (2) and (3).

        p = softmax(logits / temperature)
        log_probs_N = log p(label),    divergence_N = D of `distillation_loss`,    entropy_N = -sum_v p_v log p_v

    One softmax per token forward and one backward serve all three, and the gradients of all three are written into
    one buffer in one pass. Nothing of size N x V is kept for backward but the logits; tokens whose upstream gradient
    is 0 are not visited by it. Differentiable once.

    Args:
        student_logits_MV: logits, any floating dtype; single entries may be -inf.
        labels_N: integer ids in [0, V): the sampled tokens; None: no log-probabilities.
        positions_N: rows of the logits that predict the N tokens, all different; None: all rows, M = N.
        distilled_N: bool, the S tokens that get a divergence; None: all of them if there is a support, else none.
            This and `positions_N` are used on the host: given there, they spare a synchronisation each.
        support_SK: integer ids in [0, V), distinct in each row, for the distilled tokens in order.
        teacher_log_probs_SK: the teacher's log-probabilities of the support, nats; see `distillation_loss`.
        alpha: see `distillation_loss`, as for the next two.
        tail: whether the mass off the support is an outcome of its own.
        temperature: the logits are divided by it.
        with_entropy: whether the entropy is wanted.
        chunk_size: tokens cast up at a time; None: what suits the device, see `passes`.
        inplace_backward: write the gradient into the memory of the logits, which are lost. For logits that nothing
            else needs in backward, such as the output of a linear layer; autograd raises if something does.
        compile_kernels: let `torch.compile` make one kernel of every pass over a chunk; same results.

    Raises:
        ValueError: as `distillation_loss` does; labels or positions that do not fit the logits; a mask that does not
            fit the support.
    """
    return losses_of(
        student_logits_MV,
        labels_N,
        positions_N,
        distilled_N,
        support_SK,
        teacher_log_probs_SK,
        Options(alpha, tail, temperature, with_entropy, chunk_size, inplace_backward, compile_kernels),
        Names("student_logits_MV", "support_SK", "teacher_log_probs_SK"),
    )


class Options(NamedTuple):
    """See `token_losses`."""

    alpha: float
    tail: bool
    temperature: float
    with_entropy: bool = False
    chunk_size: int | None = None
    inplace_backward: bool = False
    compile_kernels: bool = False


class Names(NamedTuple):
    """What the caller's parameters are called, for errors."""

    logits: str
    support: str
    teacher: str


def losses_of(
    logits_MV: torch.Tensor,
    labels_N: torch.Tensor | None,
    positions_N: torch.Tensor | None,
    distilled_N: torch.Tensor | None,
    support_SK: torch.Tensor | None,
    teacher_SK: torch.Tensor | None,
    options: Options,
    names: Names,
) -> TokenLosses:
    """`token_losses`, in the words of the function that the caller called."""
    check_logits(names.logits, logits_MV)
    check_temperature_and_chunk(options.temperature, options.chunk_size)
    if not 0.0 <= options.alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {options.alpha}")
    rows_N, findings = check_positions(positions_N, logits_MV), Findings()
    num_tokens, vocab_size = len(rows_N), logits_MV.shape[1]
    if labels_N is not None:
        if labels_N.shape != (num_tokens,):
            raise ValueError(f"labels_N must have shape ({num_tokens},), got {tuple(labels_N.shape)}")
        labels_N = in_range("labels_N", labels_N, vocab_size, findings)
    if support_SK is None and (distilled_N is not None or teacher_SK is not None):
        raise ValueError(f"distilled_N and {names.teacher} need {names.support}, which is None")
    work = make_work(rows_N, _mask_on_host(distilled_N, num_tokens), support_SK is not None, logits_MV.device)
    full_support, block_rows = False, 1
    passes = passes_for(logits_MV.device, options.compile_kernels)
    chunk_rows = passes.chunk_rows(num_tokens, vocab_size, options.chunk_size)
    if support_SK is not None:
        check_support_shape(names.support, support_SK, work.num_distilled, vocab_size)
        _check_teacher(names.teacher, teacher_SK, support_SK)
        full_support = support_SK.shape[1] == vocab_size
        block_rows = passes.block_rows(chunk_rows, support_SK.shape[1])
        distinct(names.support, support_SK, findings)
        support_SK = in_range(names.support, support_SK, vocab_size, findings)
    plan = Plan(
        work=work,
        passes=passes,
        findings=findings,
        names=(names.logits, names.teacher),
        alpha=options.alpha,
        has_tail=options.tail and not full_support,
        needs_rest=not full_support and (options.tail or labels_N is not None or options.with_entropy),
        temperature=options.temperature,
        with_entropy=options.with_entropy,
        chunk_rows=chunk_rows,
        block_rows=block_rows,
        inplace_backward=options.inplace_backward,
    )
    teacher_SK = None if teacher_SK is None else teacher_SK.detach()
    return TokenLosses(*FusedLosses.apply(logits_MV, labels_N, support_SK, teacher_SK, plan))


def _mask_on_host(distilled_N: torch.Tensor | None, num_tokens: int) -> torch.Tensor | None:
    if distilled_N is None:
        return None
    if distilled_N.shape != (num_tokens,) or distilled_N.dtype != torch.bool:
        raise ValueError(
            f"distilled_N must be bool of shape ({num_tokens},), got {distilled_N.dtype} {tuple(distilled_N.shape)}"
        )
    return distilled_N.cpu()


def _check_teacher(name: str, teacher_SK: torch.Tensor | None, support_SK: torch.Tensor) -> None:
    if teacher_SK is None or (teacher_SK.shape != support_SK.shape or not teacher_SK.is_floating_point()):
        got = None if teacher_SK is None else (teacher_SK.dtype, tuple(teacher_SK.shape))
        raise ValueError(f"{name} must be floating point of the support's shape {tuple(support_SK.shape)}, got {got}")

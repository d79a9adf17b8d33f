"""Everything a loss needs of the student's logits, in one pass forward and one pass backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from srpo_verl.algos.buckets import (
    LOG_ZERO,
    bucket_divergence,
    bucket_slope,
    check_teacher_mass,
    student_buckets,
    teacher_buckets,
)
from srpo_verl.algos.chunks import (
    Rows,
    accumulation_dtype,
    check_ids,
    check_logits,
    check_positions,
    check_support,
    check_temperature_and_chunk,
    entries,
    exponentials,
    part_of,
    pick,
    raise_on_bad_row,
    read,
    rows_per_chunk,
    scratch,
    sweep,
    token_chunks,
)

# Entries of the supports of one block.
BLOCK_ELEMENTS = 2**18


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
        support_SK: integer ids in [0, V), distinct in each row, for the distilled tokens in order.
        teacher_log_probs_SK: the teacher's log-probabilities of the support, nats; see `distillation_loss`.
        alpha, tail, temperature: see `distillation_loss`.
        with_entropy: whether the entropy is wanted.
        chunk_size: tokens cast up at a time; None: what suits the device, see `chunks`.
        inplace_backward: write the gradient into the memory of the logits, which are lost. For logits that nothing
            else needs in backward, such as the output of a linear layer; autograd raises if something does.

    Raises:
        ValueError: as `distillation_loss` does; labels or positions that do not fit the logits; a mask that does not
            fit the support.
    """
    check_logits("student_logits", student_logits_MV)
    check_temperature_and_chunk(temperature, chunk_size)
    num_tokens = check_positions(positions_N, student_logits_MV)
    positions_N = None if positions_N is None else positions_N.long()
    vocab_size = student_logits_MV.shape[1]
    if labels_N is not None:
        if labels_N.shape != (num_tokens,):
            raise ValueError(f"labels_N must have shape ({num_tokens},), got {tuple(labels_N.shape)}")
        check_ids("labels_N", labels_N, vocab_size)
        labels_N = labels_N.long()
    if support_SK is None:
        if distilled_N is not None or teacher_log_probs_SK is not None:
            raise ValueError("distilled_N and teacher_log_probs_SK need support_SK, which is None")
        distilled = plain = None
        num_distilled = 0
        support_SK = student_logits_MV.new_empty(0, 1, dtype=torch.int64)
        teacher_log_probs_SK = student_logits_MV.new_empty(0, 1)
    else:
        distilled, plain = _split(distilled_N, num_tokens)
        num_distilled = num_tokens if distilled is None else len(distilled)
        check_support(support_SK, num_distilled, vocab_size)
    if teacher_log_probs_SK is None or (
        teacher_log_probs_SK.shape != support_SK.shape or not teacher_log_probs_SK.is_floating_point()
    ):
        got = None if teacher_log_probs_SK is None else (teacher_log_probs_SK.dtype, tuple(teacher_log_probs_SK.shape))
        raise ValueError(
            f"teacher_log_probs_NK must be floating point of the support's shape {tuple(support_SK.shape)}, got {got}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    full_support = support_SK.shape[1] == vocab_size
    chunk_rows = rows_per_chunk(num_tokens, vocab_size, student_logits_MV.device, chunk_size)
    plan = _Plan(
        positions_N=positions_N,
        plain_P=plain,
        distilled_S=distilled,
        num_plain=num_tokens - num_distilled,
        num_distilled=num_distilled,
        alpha=alpha,
        has_tail=tail and not full_support,
        needs_rest=not full_support and (tail or labels_N is not None or with_entropy),
        temperature=temperature,
        with_entropy=with_entropy,
        chunk_rows=chunk_rows,
        block_rows=max(chunk_rows, BLOCK_ELEMENTS // support_SK.shape[1]),
        inplace_backward=inplace_backward,
    )
    return TokenLosses(
        *_TokenLosses.apply(student_logits_MV, labels_N, support_SK, teacher_log_probs_SK.detach(), plan)
    )


def _split(distilled_N: torch.Tensor | None, num_tokens: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(indices of the distilled tokens, of the others); None for the distilled means all."""
    if distilled_N is None:
        return None, None
    if distilled_N.shape != (num_tokens,) or distilled_N.dtype != torch.bool:
        raise ValueError(
            f"distilled_N must be bool of shape ({num_tokens},), got {distilled_N.dtype} {tuple(distilled_N.shape)}"
        )
    return distilled_N.nonzero().flatten(), (~distilled_N).nonzero().flatten()


@dataclass(frozen=True)
class _Plan:
    """What forward and backward have to agree about."""

    positions_N: torch.Tensor | None
    plain_P: torch.Tensor | None
    """Tokens without a divergence; None: the first `num_plain`."""
    num_plain: int
    distilled_S: torch.Tensor | None
    """Tokens with a divergence; None: the first `num_distilled`."""
    num_distilled: int
    alpha: float
    has_tail: bool
    needs_rest: bool
    """Whether the tokens off the support are visited: for the tail, or for the normaliser of the log-probabilities."""
    temperature: float
    with_entropy: bool
    chunk_rows: int
    """Tokens whose logits are cast up together: they go through the caches once."""
    block_rows: int
    """Tokens whose supports are worked on together: few calls for what is small."""
    inplace_backward: bool

    def plain(self) -> Iterator[Rows]:
        """Tokens without a divergence, block by block."""
        for block in token_chunks(self.num_plain, self.block_rows):
            yield pick(self.plain_P, block)

    def distilled(self) -> Iterator[tuple[Rows, slice]]:
        """(tokens with a divergence, their rows in the support), block by block."""
        for block in token_chunks(self.num_distilled, self.block_rows):
            yield pick(self.distilled_S, block), block

    def chunks(self, num_rows: int) -> Iterator[slice]:
        """The parts of a block whose logits are cast up together."""
        return token_chunks(num_rows, self.chunk_rows)

    def scratch(self, logits_MV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for the logits and the probabilities of a chunk."""
        return scratch(logits_MV, min(self.chunk_rows, max(self.num_plain, self.num_distilled)))

    def rows(self, tokens: Rows) -> Rows:
        """Rows of the logits that predict the tokens."""
        return tokens if self.positions_N is None else self.positions_N[tokens]


class _TokenLosses(torch.autograd.Function):
    """`token_losses`, one sweep over a token's logits per direction.

    A token without a divergence, with upstream gradients g of its log-probability and h of its entropy H:

        d/dz_v = g [v = label] - p_v (g + h (log p_v + H))

    A distilled token. The sweep runs over the tokens *off* the support: share_v = p_v / p_rest, and its logsumexp
    completes the distribution. With f the upstream gradient of the divergence D, slope_b = dD / d log p_b and
    S = sum_b slope_b:

        d/dz_v = f (slope_v - p_v S) + ...                      on the support: each token is a bucket
        d/dz_v = f (slope_tail - p_tail S) share_v + ...        elsewhere; p_tail = p_rest is one bucket (if any)

    where ... is the line of the plain token. Since share_v is normalised by itself, small tails keep their relative
    precision. All of it is divided by the temperature.

    Logits are shifted before anything else, so that no rounding of large logits enters: those of a sweep by the
    largest of them, `max_N`, those of the support by theirs. `log_norm_N` is the logsumexp of the sweep, relative to
    `max_N` and after the temperature.
    """

    @staticmethod
    def forward(
        ctx,
        logits_MV: torch.Tensor,
        labels_N: torch.Tensor | None,
        support_SK: torch.Tensor,
        teacher_log_probs_SK: torch.Tensor,
        plan: _Plan,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype, device = accumulation_dtype(logits_MV.dtype), logits_MV.device
        num_tokens, temperature = plan.num_plain + plan.num_distilled, plan.temperature
        log_probs_N = torch.empty(0 if labels_N is None else num_tokens, dtype=dtype, device=device)
        entropy_N = torch.empty(num_tokens if plan.with_entropy else 0, dtype=dtype, device=device)
        divergence_N, max_N, log_norm_N, finite_N = torch.zeros(4, num_tokens, dtype=dtype, device=device)
        log_mass_S = torch.empty(plan.num_distilled, dtype=dtype, device=device)
        rooms = plan.scratch(logits_MV)

        if labels_N is not None or plan.with_entropy:
            for tokens in plan.plain():
                rows = plan.rows(tokens)
                max_C, log_norm_C, entropy_C = sweep(
                    logits_MV, rows, rooms, temperature, with_entropy=plan.with_entropy
                )
                max_N[tokens], log_norm_N[tokens], finite_N[tokens] = max_C, log_norm_C, max_C
                if labels_N is not None:
                    label_C = entries(logits_MV, rows, labels_N[tokens, None])[:, 0]
                    log_probs_N[tokens] = (label_C - max_C) / temperature - log_norm_C
                if entropy_C is not None:
                    entropy_N[tokens] = entropy_C

        for tokens, picked in plan.distilled():
            rows, ids_CK = plan.rows(tokens), support_SK[picked].long()
            logits_CK, shift_C = _support_logits(logits_MV, rows, ids_CK, temperature)
            rest_lse_C = rest_entropy_C = None
            if plan.needs_rest:
                max_C, log_norm_C, rest_entropy_C = sweep(
                    logits_MV, rows, rooms, temperature, with_entropy=plan.with_entropy, without_CK=ids_CK
                )
                rest_lse_C = _rest_lse(max_C, log_norm_C, shift_C, temperature)
                max_N[tokens], log_norm_N[tokens] = max_C, log_norm_C
            log_p_CJ, lse_C = student_buckets(logits_CK, rest_lse_C if plan.has_tail else None)
            log_q_CJ, log_mass_S[picked] = teacher_buckets(teacher_log_probs_SK[picked], log_p_CJ, plan.has_tail)
            # Mathematically >= 0 already; rounding can leave a -1e-8.
            divergence_N[tokens] = bucket_divergence(log_p_CJ, log_q_CJ, plan.alpha).clamp_(min=0.0)
            lse_C = _complete(lse_C, rest_lse_C, plan.has_tail)
            finite_N[tokens] = lse_C
            if labels_N is not None:
                label_C = entries(logits_MV, rows, labels_N[tokens, None])[:, 0]
                log_probs_N[tokens] = (label_C - shift_C) / temperature - lse_C
            if plan.with_entropy:
                # Chain rule of the entropy: the support's tokens and the rest as one bucket, then within the rest.
                entropy_C = -_p_log_p(logits_CK - lse_C[:, None]).sum(dim=-1)
                if rest_lse_C is not None and rest_entropy_C is not None:
                    log_rest_C = rest_lse_C - lse_C
                    entropy_C += log_rest_C.exp() * rest_entropy_C - _p_log_p(log_rest_C)
                entropy_N[tokens] = entropy_C
        raise_on_bad_row("student_logits", finite_N)
        check_teacher_mass(log_mass_S, plan.has_tail)

        ctx.save_for_backward(logits_MV, labels_N, support_SK, teacher_log_probs_SK, max_N, log_norm_N, entropy_N)
        ctx.plan = plan
        return log_probs_N, divergence_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_log_probs_N, grad_divergence_N, grad_entropy_N):
        logits_MV, labels_N, support_SK, teacher_log_probs_SK, max_N, log_norm_N, entropy_N = ctx.saved_tensors
        plan: _Plan = ctx.plan
        f_N = grad_divergence_N / plan.temperature
        g_N = torch.zeros_like(f_N) if labels_N is None else grad_log_probs_N / plan.temperature
        h_N = grad_entropy_N / plan.temperature if plan.with_entropy else None
        plan, picks, idle_M = _without_idle_tokens(plan, f_N, [g_N] if h_N is None else [g_N, h_N], len(logits_MV))

        grad_MV = logits_MV if plan.inplace_backward else torch.empty_like(logits_MV)
        if idle_M is not None:
            grad_MV.index_fill_(0, idle_M, 0.0)
        rooms = plan.scratch(logits_MV)

        for tokens in plan.plain():
            g_C = g_N[tokens]
            plain = _Sweep(max_N[tokens], log_norm_N[tokens], -g_C, plan.temperature)
            if h_N is not None:
                plain.entropy(h_N[tokens], entropy_N[tokens])
            labels_C = None if labels_N is None else labels_N[tokens]
            _write_gradient(logits_MV, grad_MV, plan.rows(tokens), plan, rooms, plain, labels_C, g_C)

        for tokens, block in plan.distilled():
            rows, picked, g_C = plan.rows(tokens), pick(picks, block), g_N[tokens]
            ids_CK = support_SK[picked].long()
            logits_CK, shift_C = _support_logits(logits_MV, rows, ids_CK, plan.temperature)
            max_C, log_norm_C = max_N[tokens], log_norm_N[tokens]
            rest_lse_C = _rest_lse(max_C, log_norm_C, shift_C, plan.temperature) if plan.needs_rest else None
            log_p_CJ, lse_C = student_buckets(logits_CK, rest_lse_C if plan.has_tail else None)
            log_q_CJ, _ = teacher_buckets(teacher_log_probs_SK[picked], log_p_CJ, plan.has_tail)
            lse_C = _complete(lse_C, rest_lse_C, plan.has_tail)

            slope_CJ = bucket_slope(log_p_CJ, log_q_CJ, plan.alpha)
            bucket_CJ = slope_CJ - log_p_CJ.exp() * slope_CJ.sum(dim=-1, keepdim=True)
            bucket_CJ *= f_N[tokens, None]
            log_p_CK = logits_CK - lse_C[:, None]
            support_CK = bucket_CJ[:, : ids_CK.shape[1]] - g_C[:, None] * log_p_CK.exp()
            if h_N is not None:
                support_CK -= h_N[tokens, None] * (_p_log_p(log_p_CK) + log_p_CK.exp() * entropy_N[tokens, None])
            rest = None
            if rest_lse_C is not None:
                log_rest_C = rest_lse_C - lse_C
                rest_C = -g_C * log_rest_C.exp() + (bucket_CJ[:, -1] if plan.has_tail else 0.0)
                rest = _Sweep(max_C, log_norm_C, rest_C, plan.temperature)
                if h_N is not None:
                    # log p = log share + log p_rest
                    rest.entropy(h_N[tokens] * log_rest_C.exp(), entropy_N[tokens] + log_rest_C.clamp(min=LOG_ZERO))
            labels_C = None if labels_N is None else labels_N[tokens]
            _write_gradient(logits_MV, grad_MV, rows, plan, rooms, rest, labels_C, g_C, ids_CK, support_CK)
        return grad_MV, None, None, None, None


def _support_logits(
    logits_MV: torch.Tensor, rows: Rows, ids_CK: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(shifted and scaled logits of the support, the shift): the largest logit of the support; 0 where not finite."""
    logits_CK = entries(logits_MV, rows, ids_CK)
    shift_C = logits_CK.amax(dim=-1)
    shift_C = shift_C.masked_fill(~torch.isfinite(shift_C), 0.0)
    return logits_CK.sub_(shift_C[:, None]).div_(temperature), shift_C


def _rest_lse(
    max_C: torch.Tensor, log_norm_C: torch.Tensor, shift_C: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The logsumexp off the support, relative to the support's shift; infinite where the maximum is (empty, +inf)."""
    return torch.where(torch.isinf(max_C), max_C, (max_C - shift_C) / temperature + log_norm_C)


def _complete(lse_C: torch.Tensor, rest_lse_C: torch.Tensor | None, has_tail: bool) -> torch.Tensor:
    """The logsumexp over the vocabulary, from that over the buckets."""
    return lse_C if has_tail or rest_lse_C is None else torch.logaddexp(lse_C, rest_lse_C)


def _p_log_p(log_p: torch.Tensor) -> torch.Tensor:
    """p log p, 0 where p is 0."""
    return log_p.exp() * log_p.clamp(min=LOG_ZERO)


class _Sweep:
    """How a block's logits become the gradient share_v * (coefficient - h (log share_v + entropy)).

    share = exp((z - max) / temperature - log_norm), the softmax of the sweep.
    """

    def __init__(self, max_C: torch.Tensor, log_norm_C: torch.Tensor, coefficient_C: torch.Tensor, temperature: float):
        # Where nothing is left off the support, every entry of it is -inf.
        is_empty_C = max_C == -math.inf
        self.max_C1 = max_C.masked_fill(is_empty_C, 0.0)[:, None]
        self.log_norm_C1 = log_norm_C.masked_fill(is_empty_C, 0.0)[:, None]
        self.factor_C1 = coefficient_C[:, None] / self.log_norm_C1.exp()
        self.temperature = temperature
        self.slope_C1: torch.Tensor | None = None

    def entropy(self, h_C: torch.Tensor, entropy_C: torch.Tensor) -> None:
        """Add the gradient of the entropy."""
        self.slope_C1 = -h_C[:, None] / self.log_norm_C1.exp()
        self.offset_C1 = entropy_C[:, None] - self.log_norm_C1

    def gradient(
        self, logits_CV: torch.Tensor, part: slice, exponents_CV: torch.Tensor, out_CV: torch.Tensor
    ) -> torch.Tensor:
        """Of one chunk, in the memory of `out_CV`, which may be the logits'.

        With an entropy, `exponents_CV` is scratch memory, and not that of `out_CV`. Entries above the maximum, those
        that the sweep left out, get anything.
        """
        if self.slope_C1 is None:
            torch.sub(logits_CV, self.max_C1[part], out=out_CV)
            exponentials(out_CV, self.temperature, out_CV)
            return out_CV.mul_(self.factor_C1[part])
        torch.sub(logits_CV, self.max_C1[part], out=exponents_CV)
        unit = exponentials(exponents_CV, self.temperature, out_CV)
        # log share + entropy; an entry of -inf has share 0.
        bracket_CV = exponents_CV.mul_(unit).clamp_(min=LOG_ZERO).add_(self.offset_C1[part])
        return out_CV.mul_(bracket_CV.mul_(self.slope_C1[part]).add_(self.factor_C1[part]))


def _write_gradient(
    logits_MV: torch.Tensor,
    grad_MV: torch.Tensor,
    rows: Rows,
    plan: _Plan,
    rooms: tuple[torch.Tensor, torch.Tensor],
    sweep: _Sweep | None,
    labels_C: torch.Tensor | None,
    g_C: torch.Tensor,
    ids_CK: torch.Tensor | None = None,
    support_CK: torch.Tensor | None = None,
) -> None:
    """The gradient of a block: the sweep (None: 0), the support's entries in its place, g added at the labels."""
    for part in plan.chunks(len(g_C)):
        here = part_of(rows, part)
        exponents_CV, room_CV = (room_RV[: part.stop - part.start] for room_RV in rooms)
        if sweep is None or sweep.slope_C1 is None:
            room_CV = exponents_CV  # one room is enough, and stays in the caches
        # Where it belongs, if that can be computed in place.
        in_place = isinstance(here, slice) and grad_MV.dtype == room_CV.dtype
        grad_CV = grad_MV[here] if in_place else room_CV
        if sweep is None:
            grad_CV.zero_()
        else:
            sweep.gradient(read(logits_MV, here, exponents_CV), part, exponents_CV, grad_CV)
        if ids_CK is not None and support_CK is not None:
            grad_CV.scatter_(1, ids_CK[part], support_CK[part])
        if labels_C is not None:
            grad_CV.scatter_add_(1, labels_C[part, None], g_C[part, None])
        if isinstance(here, torch.Tensor):
            grad_MV.index_copy_(0, here, grad_CV.to(grad_MV.dtype))
        elif not in_place:
            grad_MV[here] = grad_CV


def _without_idle_tokens(
    plan: _Plan, f_N: torch.Tensor, others: list[torch.Tensor], num_rows: int
) -> tuple[_Plan, torch.Tensor | None, torch.Tensor | None]:
    """The plan for the tokens with a gradient; their rows in the support (None: all, in order); the rows of the
    logits that get zeros (None: no row)."""
    busy_N = torch.zeros_like(f_N, dtype=torch.bool)
    tokens = torch.arange(len(f_N), device=f_N.device)
    plain = tokens[: plan.num_plain] if plan.plain_P is None else plan.plain_P
    distilled = tokens[: plan.num_distilled] if plan.distilled_S is None else plan.distilled_S
    busy_N[distilled] = f_N[distilled] != 0
    for grad_N in others:
        busy_N |= grad_N != 0
    if int(busy_N.sum()) == num_rows:
        return plan, None, None

    is_idle_M = torch.ones(num_rows, dtype=torch.bool, device=f_N.device)
    is_idle_M[busy_N if plan.positions_N is None else plan.positions_N[busy_N]] = False
    plain, picks = plain[busy_N[plain]], busy_N[distilled].nonzero().flatten()
    busy_plan = replace(
        plan, plain_P=plain, num_plain=len(plain), distilled_S=distilled[picks], num_distilled=len(picks)
    )
    return busy_plan, picks, is_idle_M.nonzero().flatten()

"""The fused pass behind `token_losses`: one sweep over a token's logits per direction."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.autograd.function import once_differentiable

from srpo_verl.algos.accelerator_passes import NARROW, AcceleratorPasses
from srpo_verl.algos.buckets import bucket_divergence, not_a_part, raise_on_teacher_mass
from srpo_verl.algos.checks import Findings, raise_on_bad_row
from srpo_verl.algos.distilled_block import block_entropy, distilled_block
from srpo_verl.algos.fused_gradient import (
    Upstream,
    busy_places,
    gradient_of_one,
    put,
    write_distilled,
    write_share,
    write_zeros,
)
from srpo_verl.algos.passes import Rooms, Sums
from srpo_verl.algos.rows import accumulation_dtype, cut, entries
from srpo_verl.algos.work import Plan


class FusedLosses(torch.autograd.Function):
    """`token_losses`, one sweep over a token's logits per direction.

    A token without a divergence, with upstream gradients g of its log-probability and h of its entropy H:

        d/dz_v = g [v = label] - p_v (g + h (log p_v + H))

    A distilled token. The sweep runs over the tokens *off* the support: share_v = p_v / p_rest, and its logsumexp
    completes the distribution. With f the upstream gradient of the divergence D, slope_b = dD / d log p_b and
    S = sum_b slope_b:

        d/dz_v = f (slope_v - p_v S) + ...                      on the support: each token is a bucket
        d/dz_v = f (slope_tail - p_tail S) share_v + ...        elsewhere; p_tail = p_rest is one bucket (if any)

    where ... is the line of the plain token. Since share_v is normalised by itself, small tails keep their relative
    precision. All of it is divided by the temperature. The entries of the support and of the label are computed by
    themselves in fp32 and put in their places after the sweep's.

    Logits are shifted before anything else, so that no rounding of large logits enters. Values per token are held in
    the order of the work (W places).
    """

    @staticmethod
    def forward(
        ctx,
        logits_MV: torch.Tensor,
        labels_N: torch.Tensor | None,
        support_SK: torch.Tensor | None,
        teacher_SK: torch.Tensor | None,
        plan: Plan,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        work = plan.work
        labels_W = None if labels_N is None else work.to_places(labels_N)
        rows_W = work.on_device(work.rows_W)
        log_probs_W, divergence_W, entropy_W, finite_W, shift_W1, log_norm_W1 = _results(logits_MV, plan, labels_W)
        rooms, plain = plan.rooms(logits_MV), None
        log_mass_S = torch.empty_like(divergence_W[work.num_plain :])

        if work.num_plain > 0 and (labels_W is not None or plan.with_entropy):
            here = slice(0, work.num_plain)
            labels_P = None if labels_W is None else labels_W[here]
            sums, log_probs_P = _plain_sums(logits_MV, rows_W[here], labels_P, finite_W, rooms, plan)
            plain = sums
            if log_probs_P is not None:
                log_probs_W[here] = log_probs_P
            if sums.entropy_N1 is not None:
                entropy_W[here] = sums.entropy_N1[:, 0]

        for block in work.blocks(plan.block_rows):
            assert support_SK is not None  # nothing is distilled without
            assert teacher_SK is not None
            picked = slice(block.start - work.num_plain, block.stop - work.num_plain)
            ids_CK, rest = support_SK[picked], None
            if plan.needs_rest:
                rest = _sums_of(logits_MV, work.rows_W[block], rows_W[block], rooms, plan, plan.with_entropy, ids_CK)
                shift_W1[block], log_norm_W1[block] = rest.shift_N1, rest.log_norm_N1
            part = distilled_block(logits_MV, rows_W[block], ids_CK, teacher_SK[picked], rest, plan)
            # Mathematically >= 0 already; rounding can leave a -1e-8.
            divergence_W[block] = bucket_divergence(part.log_p_CJ, part.log_q_CJ, plan.alpha).clamp_(min=0.0)
            finite_W[block] = part.lse_C
            log_mass_S[picked] = part.log_mass_C
            if labels_W is not None:
                label_C = entries(logits_MV, rows_W[block], labels_W[block, None])[:, 0]
                log_probs_W[block] = (label_C - part.shift_C) / plan.temperature - part.lse_C
            if plan.with_entropy:
                entropy_W[block] = block_entropy(part, rest)
        is_wrong_S = not_a_part(log_mass_S, plan.has_tail)
        plan.findings.add(~torch.isfinite(finite_W), lambda: raise_on_bad_row(plan.names[0], work.to_tokens(finite_W)))
        plan.findings.add(is_wrong_S, lambda: raise_on_teacher_mass(plan.names[1], log_mass_S, plan.has_tail))
        plan.findings.settle()
        if plain is not None:
            here = slice(0, work.num_plain)
            shift_W1[here], log_norm_W1[here] = plain.shift_N1, plain.log_norm_N1

        ctx.save_for_backward(
            logits_MV, labels_W, support_SK, teacher_SK, rows_W, shift_W1, log_norm_W1, log_probs_W, entropy_W
        )
        ctx.plan = replace(plan, findings=Findings())
        outputs = (log_probs_W, divergence_W, entropy_W)
        log_probs_N, divergence_N, entropy_N = (v if len(v) == 0 else work.to_tokens(v) for v in outputs)
        return log_probs_N, divergence_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_log_probs_N, grad_divergence_N, grad_entropy_N):
        logits_MV, labels_W, support_SK, teacher_SK, rows_W, *values = ctx.saved_tensors
        shift_W1, log_norm_W1, log_probs_W, entropy_W = values
        plan: Plan = ctx.plan
        f_W = plan.work.to_places(grad_divergence_N / plan.temperature)
        g_W = None if labels_W is None else plan.work.to_places(grad_log_probs_N / plan.temperature)
        h_W = plan.work.to_places(grad_entropy_N / plan.temperature) if plan.with_entropy else None

        grad_MV = logits_MV if plan.inplace_backward else torch.empty_like(logits_MV)
        keep_W = busy_places(plan.work, f_W, g_W, h_W)
        write_zeros(grad_MV, plan.work, keep_W)
        if len(keep_W) < len(f_W):
            first = int((keep_W < plan.work.num_plain).sum())
            index = plan.work.on_device(keep_W)
            plan = replace(plan, work=plan.work.only(keep_W))
            everything = (f_W, g_W, h_W, labels_W, rows_W, shift_W1, log_norm_W1, log_probs_W, entropy_W)
            f_W, g_W, h_W, labels_W, rows_W, shift_W1, log_norm_W1, log_probs_W, entropy_W = (  # type: ignore
                v if v is None or len(v) == 0 else v.index_select(0, index) for v in everything
            )
            if support_SK is not None and teacher_SK is not None:
                picks = index[first:] - ctx.plan.work.num_plain
                support_SK, teacher_SK = support_SK.index_select(0, picks), teacher_SK.index_select(0, picks)
        g_W = torch.zeros_like(f_W) if g_W is None else g_W
        sums, rooms = Sums(shift_W1, log_norm_W1, None), plan.rooms(logits_MV)

        def at(block: slice) -> Upstream:
            return Upstream(
                g_W[block],
                f_W[block],
                None if h_W is None else h_W[block],
                None if h_W is None else entropy_W[block],
                None if labels_W is None else labels_W[block],
                None if labels_W is None else log_probs_W[block],
            )

        if plan.work.num_plain > 0:
            here = slice(0, plan.work.num_plain)
            up = at(here)
            write_share(logits_MV, grad_MV, here, rooms, plan, sums, -up.g_C, up.entropy)
            if up.labels_C is not None and up.log_probs_C is not None:
                label_C1 = (up.g_C + gradient_of_one(up, up.log_probs_C))[:, None]
                put(grad_MV, rows_W[here], up.labels_C[:, None], label_C1)
        for block in plan.work.blocks(plan.block_rows):
            assert support_SK is not None  # nothing is distilled without
            assert teacher_SK is not None
            picked = slice(block.start - plan.work.num_plain, block.stop - plan.work.num_plain)
            rest = sums.pick(block) if plan.needs_rest else None
            part = distilled_block(logits_MV, rows_W[block], support_SK[picked], teacher_SK[picked], rest, plan)
            write_distilled(logits_MV, grad_MV, block, rows_W[block], rooms, plan, sums, part, at(block))
        return grad_MV, None, None, None, None


def _results(logits_MV: torch.Tensor, plan: Plan, labels_W: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Memory for log-probs, divergence, entropy, finiteness (W), shift and log-norm (W, 1)."""
    num = len(plan.work.rows_W)
    values = logits_MV.new_zeros(6, num, dtype=accumulation_dtype(logits_MV.dtype))
    log_probs_W, divergence_W, entropy_W, finite_W, shift_W, log_norm_W = (row.clone() for row in values)
    none = log_probs_W[:0]
    return (
        none.clone() if labels_W is None else log_probs_W,
        divergence_W,
        entropy_W if plan.with_entropy else none.clone(),
        finite_W,
        shift_W[:, None],
        log_norm_W[:, None],
    )


def _sums_of(
    logits_MV: torch.Tensor,
    host_rows_N: torch.Tensor,
    rows_N: torch.Tensor,
    rooms: Rooms,
    plan: Plan,
    with_entropy: bool,
    without_NK: torch.Tensor | None = None,
) -> Sums:
    """The sums of some rows, chunk by chunk; with ids `without_NK` these are left out."""
    raw = plan.passes.raw(logits_MV, len(host_rows_N))
    for where, rows in cut(host_rows_N, plan.chunk_rows, logits_MV.device):
        without_CK = None if without_NK is None else without_NK[where]
        plan.passes.sweep(logits_MV, rows, rooms, plan.temperature, with_entropy, without_CK, raw.of(where))
    return plan.passes.finish(raw, logits_MV, rows_N, plan.temperature, with_entropy)


def _plain_sums(
    logits_MV: torch.Tensor,
    rows_P: torch.Tensor,
    labels_P: torch.Tensor | None,
    finite_W: torch.Tensor,
    rooms: Rooms,
    plan: Plan,
) -> tuple[Sums, torch.Tensor | None]:
    """(sums, log-probabilities of the labels) of the tokens without a divergence; their maxima go to `finite_W`."""
    host_rows_P = plan.work.rows_W[: plan.work.num_plain]
    passes = plan.passes
    by_label = plan.temperature == 1.0 and logits_MV.dtype in NARROW and not plan.with_entropy
    if labels_P is None or not by_label or not isinstance(passes, AcceleratorPasses):
        sums = _sums_of(logits_MV, host_rows_P, rows_P, rooms, plan, plan.with_entropy)
        finite_W[: len(rows_P)] = sums.shift_N
        if labels_P is None:
            return sums, None
        label_P = entries(logits_MV, rows_P, labels_P[:, None])[:, 0]
        return sums, (label_P - sums.shift_N) / plan.temperature - sums.log_norm_N
    # The label's logit is the shift; it will do for a gradient that is rounded to a narrow dtype.
    log_probs_P1 = torch.empty(len(rows_P), 1, dtype=accumulation_dtype(logits_MV.dtype), device=logits_MV.device)
    for where, rows in cut(host_rows_P, plan.chunk_rows, logits_MV.device):
        passes.label_sums(logits_MV, rows, rooms, labels_P[where, None], log_probs_P1[where])
    shift_P1, log_norm_P1 = entries(logits_MV, rows_P, labels_P[:, None]), -log_probs_P1

    def look_again() -> None:
        """A masked label has no place in the softmax, a row that is not finite has no softmax: sweep these."""
        which_P = (~torch.isfinite(log_probs_P1[:, 0])).nonzero().flatten()
        sums = _sums_of(logits_MV, host_rows_P[which_P.cpu()], rows_P[which_P], rooms, plan, False)
        shift_P1[which_P], log_norm_P1[which_P] = sums.shift_N1, sums.log_norm_N1
        finite_W[which_P] = sums.shift_N
        raise_on_bad_row(plan.names[0], plan.work.to_tokens(finite_W))

    plan.findings.add(~torch.isfinite(log_probs_P1), look_again)
    return Sums(shift_P1, log_norm_P1, None), log_probs_P1[:, 0]

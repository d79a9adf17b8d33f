"""What the functions over logits are to return, in float64 and by autograd, and how far off a result is."""

from __future__ import annotations

from typing import NamedTuple

import torch

from scripts.bench.implementations import ALPHA, Inputs, Result

CHECKED_ROWS = 6


class Exact(NamedTuple):
    """Of every token; the gradient is that of the sum of what was asked for."""

    log_probs_N: torch.Tensor
    divergence_N: torch.Tensor
    entropy_N: torch.Tensor
    teacher_log_probs_NK: torch.Tensor
    teacher_entropy_N: torch.Tensor
    grad_NV: torch.Tensor


def exact(
    inputs: Inputs,
    support: torch.Tensor,
    *,
    with_labels: bool = True,
    with_entropy: bool = False,
    distilled_N: torch.Tensor | None = None,
) -> Exact:
    """Softmax and bucket probabilities, no shift and no logarithm of a sum. Without a mask all are distilled."""
    logits, teacher = inputs.student.detach().double().requires_grad_(), inputs.teacher.double()
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(teacher, -1)
    rest = torch.ones_like(teacher).scatter(-1, support, 0.0)
    p, q = (
        torch.cat([log.exp().gather(-1, support), (log.exp() * rest).sum(-1, keepdim=True)], -1)
        for log in (log_p, log_q)
    )
    m = (1.0 - ALPHA) * p + ALPHA * q
    divergence = (1.0 - ALPHA) * torch.xlogy(p, p / m).sum(-1) + ALPHA * torch.xlogy(q, q / m).sum(-1)
    if distilled_N is not None:
        divergence = torch.where(distilled_N, divergence, 0.0)
    log_probs = log_p.gather(-1, inputs.labels[:, None])[:, 0]
    entropy, teacher_entropy = (torch.special.entr(log.exp()).sum(-1) for log in (log_p, log_q))
    total = divergence.sum() + with_labels * log_probs.sum() + with_entropy * entropy.sum()
    (grad,) = torch.autograd.grad(total, logits)
    values = (log_probs, divergence, entropy, log_q.gather(-1, support), teacher_entropy, grad)
    return Exact(*(value.detach() for value in values))


def errors(inputs: Inputs, result: Result, with_labels: bool) -> tuple[float | None, float | None]:
    """(gradient, entropy) of a few rows.

    Gradient: the largest difference in a row over the largest entry of that row's gradient, of the worst row.
    Entropy: nats, of the worst row.
    """
    rows = torch.linspace(0, len(inputs.labels) - 1, CHECKED_ROWS).long().unique()
    few = inputs.at(rows)
    support = few.student.topk(few.k, dim=-1).indices if result.support is None else result.support[rows]
    wanted = exact(few, support, with_labels=with_labels)
    grad_error = entropy_error = None
    if result.grad is not None:
        difference = (result.grad[rows].double() - wanted.grad_NV).abs().amax(dim=-1)
        grad_error = float((difference / wanted.grad_NV.abs().amax(dim=-1)).max())
    if result.entropy is not None:
        entropy_error = float((result.entropy[rows].double() - wanted.teacher_entropy_N).abs().max())
    return grad_error, entropy_error

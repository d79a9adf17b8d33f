"""What is measured: from two logits tensors to the student's gradient, as shipped and as plain PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from srpo_verl.functional import distillation_loss, score_teacher, token_losses, topk_support

ALPHA = 0.5
"""Jensen-Shannon."""

STAGES = ("support", "teacher", "student_forward", "student_backward")
"""In the order they run; what an implementation does not have takes no time."""

CHECKED_ROWS = 6


@dataclass(frozen=True)
class Inputs:
    """Two logits tensors and the sampled tokens."""

    student: torch.Tensor
    teacher: torch.Tensor
    labels: torch.Tensor
    k: int

    def head(self, num_tokens: int) -> Inputs:
        """The first tokens, without a copy."""
        return Inputs(self.student[:num_tokens], self.teacher[:num_tokens], self.labels[:num_tokens], self.k)

    def some_rows(self) -> torch.Tensor:
        """Rows that are compared with float64."""
        return torch.linspace(0, len(self.labels) - 1, CHECKED_ROWS).long().unique()


@dataclass(frozen=True)
class Result:
    """What an implementation made; None: it does not make it, or not of these logits."""

    grad: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    support: torch.Tensor | None = None
    """Logits of narrow dtypes are often equal: which of them are among the top K is open."""


class Clock:
    """Seconds between marks, an accelerator's queue included."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def mark(self, stage: str) -> None:
        now = self._now()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


Work = Callable[[Inputs, Clock], Result]


def make_inputs(
    num_tokens: int, vocab: int, k: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Inputs:
    """Logits with a head of likely tokens, and a teacher that differs from the student a little on all of them."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.empty(num_tokens, vocab, dtype=dtype, device=device) for _ in range(2))
    likely = min(vocab, 20)
    # Row by row: no second tensor of that size is ever there.
    for row in range(num_tokens):
        logits = 2.0 * torch.randn(vocab, generator=generator)
        ids = torch.randint(vocab, (likely,), generator=generator)
        logits[ids] += 6.0 + 4.0 * torch.rand(likely, generator=generator)
        student[row] = logits
        teacher[row] = logits + 0.5 * torch.randn(vocab, generator=generator)
    labels = torch.randint(vocab, (num_tokens,), generator=generator).to(device)
    return Inputs(student, teacher, labels, k)


def srpo(
    inputs: Inputs, clock: Clock, with_labels: bool = False, as_engine: bool = False, compiled: bool = False
) -> Result:
    """`topk_support`, `score_teacher`, `distillation_loss` (`token_losses` with labels) and backward.

    `as_engine`: with a mask of the distilled tokens (all), the gradient in the place of the logits, of a copy of them.
    `compiled`: by `torch.compile`, as `srpo.kernels.compile=true` has it; only with one of the two others.
    """
    student = inputs.student.detach()
    if as_engine:
        student = student.clone()
        clock.mark("setup")
    student.requires_grad_()
    support = topk_support(student, inputs.k)
    clock.mark("support")
    log_q, entropy = score_teacher(inputs.teacher, support, compile_kernels=compiled)
    clock.mark("teacher")
    if with_labels or as_engine:
        losses = token_losses(
            student,
            inputs.labels if with_labels else None,
            support_SK=support,
            teacher_log_probs_SK=log_q,
            alpha=ALPHA,
            tail=True,
            distilled_N=torch.ones(len(student), dtype=torch.bool) if as_engine else None,
            inplace_backward=as_engine,
            compile_kernels=compiled,
        )
        total = losses.divergence_N.sum() + losses.log_probs_N.sum()
    else:
        total = distillation_loss(student, support, log_q, alpha=ALPHA, tail=True).sum()
    clock.mark("student_forward")
    (grad,) = torch.autograd.grad(total, student)
    clock.mark("student_backward")
    return Result(grad.detach(), entropy, support)


def eager(inputs: Inputs, clock: Clock, with_labels: bool = False, cast: bool = False) -> Result:
    """The same from torch's operations, differentiated by autograd. `cast`: in fp32, whatever the logits are."""
    student = inputs.student.detach().requires_grad_()
    z = student.float() if cast else student
    values, support = torch.topk(z, inputs.k, dim=-1)
    clock.mark("support")
    with torch.no_grad():
        teacher = inputs.teacher.float() if cast else inputs.teacher
        log_q = teacher.gather(-1, support) - teacher.logsumexp(dim=-1, keepdim=True)
        log_all = torch.log_softmax(teacher, dim=-1)
        entropy = -(log_all.exp() * log_all).sum(dim=-1)
        del teacher, log_all
        log_q = _with_tail(log_q)
    clock.mark("teacher")
    log_p = _with_tail(values - z.logsumexp(dim=-1, keepdim=True))
    total = _jensen_shannon(log_p, log_q).sum()
    if with_labels:
        # A function of its own, as it is where the policy loss and the distillation loss do not know of each other.
        total = total + (z.gather(-1, inputs.labels[:, None])[:, 0] - z.logsumexp(dim=-1)).sum()
    clock.mark("student_forward")
    total.backward()
    clock.mark("student_backward")
    return Result(student.grad, entropy, support)


def _with_tail(log_probs_NK: torch.Tensor) -> torch.Tensor:
    log_mass_N1 = log_probs_NK.logsumexp(dim=-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([log_probs_NK, torch.log(-torch.expm1(log_mass_N1))], dim=-1)


def _jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    p, q = log_p.exp(), log_q.exp()
    log_m = (0.5 * (p + q)).log()
    return 0.5 * ((p * (log_p - log_m)).sum(dim=-1) + (q * (log_q - log_m)).sum(dim=-1))


def logsumexp(inputs: Inputs, clock: Clock) -> Result:
    """One bare `torch.logsumexp` over the teacher's logits: what teacher scoring is measured by."""
    with torch.no_grad():
        torch.logsumexp(inputs.teacher, dim=-1)
    clock.mark("teacher")
    return Result()


def exact(inputs: Inputs, support: torch.Tensor, with_labels: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient, teacher's entropy) of a few rows in float64: bucket probabilities, autograd."""
    student = inputs.student.detach().double().requires_grad_()
    teacher = inputs.teacher.double()
    rest = torch.ones_like(student).scatter(-1, support, 0.0)

    def buckets(logits: torch.Tensor) -> torch.Tensor:
        p = torch.softmax(logits, dim=-1)
        return torch.cat([p.gather(-1, support), (p * rest).sum(dim=-1, keepdim=True)], dim=-1)

    p, q = buckets(student), buckets(teacher)
    m = (1.0 - ALPHA) * p + ALPHA * q
    total = (1.0 - ALPHA) * torch.xlogy(p, p / m).sum() + ALPHA * torch.xlogy(q, q / m).sum()
    if with_labels:
        total = total + torch.log_softmax(student, dim=-1).gather(-1, inputs.labels[:, None]).sum()
    (grad,) = torch.autograd.grad(total, student)
    return grad, torch.special.entr(torch.softmax(teacher, dim=-1)).sum(dim=-1)


def errors(inputs: Inputs, result: Result, with_labels: bool) -> tuple[float | None, float | None]:
    """(gradient, entropy) of a few rows against float64.

    Gradient: the largest difference in a row over the largest entry of that row's gradient, of the worst row.
    Entropy: nats, of the worst row.
    """
    rows = inputs.some_rows()
    few = Inputs(inputs.student[rows], inputs.teacher[rows], inputs.labels[rows], inputs.k)
    support = few.student.topk(few.k, dim=-1).indices if result.support is None else result.support[rows]
    grad, entropy = exact(few, support, with_labels)
    grad_error = entropy_error = None
    if result.grad is not None:
        difference = (result.grad[rows].double() - grad).abs().amax(dim=-1)
        grad_error = float((difference / grad.abs().amax(dim=-1)).max())
    if result.entropy is not None:
        entropy_error = float((result.entropy[rows].double() - entropy).abs().max())
    return grad_error, entropy_error

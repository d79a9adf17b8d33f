"""From two logits tensors to the student's gradient: SRPO's functions, the same in plain PyTorch, and TRL's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from srpo_verl.functional import distillation_loss, score_teacher, token_losses, topk_support

ALPHA = 0.5
"""Jensen-Shannon."""

STAGES = ("support", "teacher", "student_forward", "student_backward")
"""In the order they run; what an implementation does not have takes no time."""


@dataclass(frozen=True)
class Inputs:
    """Two logits tensors and the sampled tokens."""

    student: torch.Tensor
    teacher: torch.Tensor
    labels: torch.Tensor
    k: int

    def at(self, rows: slice | torch.Tensor) -> Inputs:
        """Some tokens; of a slice, without a copy."""
        return Inputs(self.student[rows], self.teacher[rows], self.labels[rows], self.k)


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


Run = Callable[[Inputs, Clock], Result]


def make_inputs(
    num_tokens: int, vocab: int, k: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Inputs:
    """Logits with a head of likely tokens, and a teacher that differs from the student a little on all of them."""
    # On the device itself: a processor takes a minute for two tensors of 8192 rows.
    generator = torch.Generator(device).manual_seed(seed)
    random: dict[str, Any] = {"generator": generator, "device": device}
    student, teacher = (torch.empty(num_tokens, vocab, dtype=dtype, device=device) for _ in range(2))
    likely = min(vocab, 20)
    # Row by row: no second tensor of that size is ever there.
    for row in range(num_tokens):
        logits = 2.0 * torch.randn(vocab, **random)
        ids = torch.randint(vocab, (likely,), **random)
        logits[ids] += 6.0 + 4.0 * torch.rand(likely, **random)
        student[row] = logits
        teacher[row] = logits + 0.5 * torch.randn(vocab, **random)
    labels = torch.randint(vocab, (num_tokens,), **random)
    return Inputs(student, teacher, labels, k)


def srpo(inputs: Inputs, clock: Clock, as_engine: bool = False, compiled: bool = False) -> Result:
    """`topk_support`, `score_teacher`, `distillation_loss` and backward.

    `as_engine`: `token_losses` with labels and a mask of the distilled tokens (all), the gradient in the place of the
    logits, of a copy of them. `compiled`: that by `torch.compile`, as `srpo.kernels.compile=true` has it.
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
    if as_engine:
        losses = token_losses(
            student,
            inputs.labels,
            support_SK=support,
            teacher_log_probs_SK=log_q,
            alpha=ALPHA,
            tail=True,
            distilled_N=torch.ones(len(student), dtype=torch.bool),
            inplace_backward=True,
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


def trl(inputs: Inputs, clock: Clock) -> Result:
    """TRL's SDPO, the same divergence (top K, tail, Jensen-Shannon): support and divergence in one function."""
    loss = import_module("trl.experimental.sdpo.loss_utils").compute_topk_self_distillation_loss
    entropy_from_logits = import_module("trl.trainer.utils").entropy_from_logits
    student = inputs.student.detach().requires_grad_()
    clock.mark("setup")
    with torch.no_grad():
        entropy = entropy_from_logits(inputs.teacher)
    clock.mark("teacher")
    total = loss(
        student, inputs.teacher, distillation_topk=inputs.k, distillation_alpha=ALPHA, distillation_add_tail=True
    ).sum()
    clock.mark("student_forward")
    total.backward()
    clock.mark("student_backward")
    return Result(student.grad, entropy)


def trl_version() -> str | None:
    """None: not installed."""
    try:
        return version("trl")
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Implementation:
    """What is timed under a name, and which of SRPO's it is compared with, of which it may do a part only."""

    run: Run
    against: str = "srpo"
    labels: bool = False
    """Whether log-probabilities of labels are in the gradient."""


IMPLEMENTATIONS = {
    "srpo": Implementation(srpo),
    # As in training: labels, a mask of distilled tokens, the gradient in the logits' memory.
    "srpo_engine": Implementation(partial(srpo, as_engine=True), "srpo_engine", labels=True),
    "eager": Implementation(eager),
    "eager_labels": Implementation(partial(eager, with_labels=True), "srpo_engine", labels=True),
    "eager_cast": Implementation(partial(eager, cast=True)),
    "logsumexp": Implementation(logsumexp),
    "trl": Implementation(trl),
}

GROWTH = ("srpo", "srpo_engine")
"""Also timed on the first tokens of the same logits, to see how time grows with their number."""


def applicable(dtype: str) -> list[str]:
    """Names of what is measured for this dtype: TRL where it is installed, a cast to fp32 where it is one."""
    left_out = {*(() if trl_version() else ("trl",)), *(("eager_cast",) if dtype == "float32" else ())}
    return [name for name in IMPLEMENTATIONS if name not in left_out]

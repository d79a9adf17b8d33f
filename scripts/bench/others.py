"""TRL's and Liger's functions, as installed; each is imported when it is asked for.

TRL's `compute_topk_self_distillation_loss` is the same divergence (the student's top K, tail bucket, Jensen-Shannon),
`entropy_from_logits` the same entropy, `selective_log_softmax` the same log-probabilities. The generalized JSD of TRL
and the JSD of Liger are divergences over the whole vocabulary: no support, no tail, no entropy of the teacher.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from scripts.bench.work import ALPHA, Clock, Inputs, Result, Work, srpo

HIDDEN = 64
"""Width of the hidden states in front of the projection: small, so that the matrix products do not hide the rest."""

LIGER_CHUNK = 1024
"""Tokens that Liger's fused function takes at a time, its own default."""


def trl(with_labels: bool = False) -> Work:
    """TRL's SDPO: support and divergence in one function, then the teacher's entropy."""
    loss = import_module("trl.experimental.sdpo.loss_utils").compute_topk_self_distillation_loss
    utils = import_module("trl.trainer.utils")

    def work(inputs: Inputs, clock: Clock) -> Result:
        student = inputs.student.detach().requires_grad_()
        with torch.no_grad():
            entropy = utils.entropy_from_logits(inputs.teacher)
        clock.mark("teacher")
        total = loss(
            student, inputs.teacher, distillation_topk=inputs.k, distillation_alpha=ALPHA, distillation_add_tail=True
        ).sum()
        if with_labels:
            total = total + utils.selective_log_softmax(student, inputs.labels).sum()
        clock.mark("student_forward")
        total.backward()
        clock.mark("student_backward")
        return Result(student.grad, entropy)

    return work


def trl_full_vocabulary() -> Work:
    """TRL's generalized JSD, as its GKD trainer uses it."""
    trainer = import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer

    def work(inputs: Inputs, clock: Clock) -> Result:
        student = inputs.student.detach().requires_grad_()
        total = trainer.generalized_jsd_loss(student[None], inputs.teacher[None], beta=ALPHA, reduction="sum")
        clock.mark("student_forward")
        total.backward()
        clock.mark("student_backward")
        return Result()

    return work


def liger_full_vocabulary() -> Work:
    """What Liger's fused JSD does with a chunk of logits, differentiated by autograd."""
    function = import_module("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction

    def work(inputs: Inputs, clock: Clock) -> Result:
        student = inputs.student.detach().requires_grad_()
        total = function.distillation_loss_fn(student, inputs.teacher, beta=ALPHA)
        clock.mark("student_forward")
        total.backward()
        clock.mark("student_backward")
        return Result()

    return work


def liger_kernel() -> Work:
    """Liger's Triton kernel of the JSD over logits."""
    jsd = import_module("liger_kernel.transformers.jsd").LigerJSD(beta=ALPHA)

    def work(inputs: Inputs, clock: Clock) -> Result:
        student = inputs.student.detach().requires_grad_()
        total = jsd(torch.log_softmax(student, dim=-1), torch.log_softmax(inputs.teacher, dim=-1))
        clock.mark("student_forward")
        total.backward()
        clock.mark("student_backward")
        return Result()

    return work


def _projection(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """(hidden states of student and teacher, both heads): of the inputs' sizes, dtype and device."""
    generator = torch.Generator().manual_seed(0)
    rows, vocab = inputs.student.shape
    shapes = [(rows, HIDDEN), (rows, HIDDEN), (vocab, HIDDEN), (vocab, HIDDEN)]
    return tuple(torch.randn(shape, generator=generator).to(inputs.student) for shape in shapes)


def srpo_projection() -> Work:
    """Both projections, the pipeline, and backward to hidden states and head."""

    def work(inputs: Inputs, clock: Clock) -> Result:
        hidden, teacher_hidden, head, teacher_head = _projection(inputs)
        hidden.requires_grad_(), head.requires_grad_()
        clock.mark("setup")
        logits = hidden @ head.T
        with torch.no_grad():
            teacher = teacher_hidden @ teacher_head.T
        clock.mark("student_forward")
        stages = Clock(inputs.student.device)
        result = srpo(Inputs(logits, teacher, inputs.labels, inputs.k), stages)
        clock.mark("student_forward")
        logits.backward(result.grad)
        clock.mark("student_backward")
        return Result()

    return work


def liger_projection() -> Work:
    """Liger's fused linear JSD, which takes hidden states and heads; it computes the gradients in its forward."""
    loss = import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=ALPHA, compiled=False, chunk_size=LIGER_CHUNK
    )

    def work(inputs: Inputs, clock: Clock) -> Result:
        hidden, teacher_hidden, head, teacher_head = _projection(inputs)
        hidden.requires_grad_(), head.requires_grad_()
        clock.mark("setup")
        total = loss(hidden, head, teacher_hidden, teacher_head, inputs.labels)
        clock.mark("student_forward")
        total.backward()
        clock.mark("student_backward")
        return Result()

    return work


PACKAGES = {"trl": "trl", "liger": "liger-kernel"}


def find(prefix: str) -> str | None:
    """The installed version of TRL ("trl") or Liger ("liger"); None: not installed."""
    try:
        return version(PACKAGES[prefix])
    except PackageNotFoundError:
        return None

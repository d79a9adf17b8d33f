"""TRL's functions, as installed; imported when they are asked for.

TRL's `compute_topk_self_distillation_loss` is the same divergence (the student's top K, tail bucket, Jensen-Shannon),
`entropy_from_logits` the same entropy, `selective_log_softmax` the same log-probabilities.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from scripts.bench.work import ALPHA, Clock, Inputs, Result, Work


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


PACKAGES = {"trl": "trl"}


def find(prefix: str) -> str | None:
    """The installed version of TRL ("trl"); None: not installed."""
    try:
        return version(PACKAGES[prefix])
    except PackageNotFoundError:
        return None

"""The teacher's average over all ranks, and where it is kept; the arithmetic is in srpo_verl/teacher/ema.py."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from verl.utils.device import get_device_name
from verl.workers.config import FSDPEngineConfig

from srpo_verl.config.schema import TeacherConfig
from srpo_verl.teacher.ema import ema_step, squared_distance


def keeps_on_cpu(teacher: TeacherConfig, student: FSDPEngineConfig) -> bool:
    """Whether the teacher's weights are on the CPU between uses: as asked for, or else as the student's are."""
    if teacher.cpu_offload is not None:
        return teacher.cpu_offload
    return student.param_offload or student.offload_policy


def step_and_measure(
    teacher: Iterable[torch.Tensor], student: Iterable[torch.Tensor], settings: TeacherConfig
) -> float:
    """The EMA step (of an `ema` teacher); ||theta' - theta|| / ||theta|| afterwards, over the tensors of all ranks."""
    is_averaged = settings.kind == "ema"
    sums = ema_step(teacher, student, settings.ema_rate) if is_averaged else squared_distance(teacher, student)
    sums = sums.to(get_device_name())
    dist.all_reduce(sums)
    return (sums[0] / sums[1]).sqrt().item()

"""The teacher's weights inside FSDP: building, re-sharding, averaging, saving. For LoRA see adapters.py."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from verl.trainer.config import CheckpointConfig
from verl.utils.device import get_device_name, get_torch_device
from verl.utils.fsdp_utils import FSDPModule
from verl.workers.config import FSDPEngineConfig, TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry

from srpo_verl.config.schema import SrpoConfig, TeacherConfig
from srpo_verl.installation import TEACHER_TYPE
from srpo_verl.teacher.ema import ema_step, squared_distance
from srpo_verl.verl_ext.engine import SrpoEngine

CHECKPOINT_FOLDER = "srpo_teacher"
"""Beside veRL's `actor` folder in global_step_N."""

ADAPTER_FILE = "adapters_world_size_{world_size}_rank_{rank}.pt"
"""One rank's part of a LoRA run's teacher in that folder; a full teacher has veRL's own files there."""


def build_teacher(actor: TrainingWorkerConfig, srpo: SrpoConfig) -> SrpoEngine:
    """A second engine with the model's initial weights, in fp32, sharded like the actor's, without an optimizer."""
    engine_config = replace(
        actor.engine_config,
        # In bf16 an average at this rate does not move: most updates round away.
        model_dtype="fp32",
        param_offload=keeps_on_cpu(srpo.teacher, actor.engine_config),
        optimizer_offload=False,
        offload_policy=False,
    )
    teacher = EngineRegistry.new(
        model_type=TEACHER_TYPE,
        backend=engine_config.strategy,
        model_config=deepcopy(actor.model_config),
        engine_config=engine_config,
        optimizer_config=None,
        checkpoint_config=CheckpointConfig(save_contents=["model"], load_contents=["model"]),
    )
    teacher.initialize()
    teacher.module.requires_grad_(False)
    return teacher


def keeps_on_cpu(teacher: TeacherConfig, student: FSDPEngineConfig) -> bool:
    """Whether the teacher's weights are on the CPU between uses: as asked for, or else as the student's are."""
    if teacher.cpu_offload is not None:
        return teacher.cpu_offload
    return student.param_offload or student.offload_policy


@torch.no_grad()  # where gradients are on, FSDP1 may leave parameters on the gathered memory that it frees
def reshard(module: torch.nn.Module) -> None:
    """Give every FSDP unit its shards back, the root included.

    A module that only ever runs forward under no_grad keeps its root unit's gathered parameters: an average written
    into the shards would then never reach embeddings, final norm and LM head, and the next forward would use the old
    ones. veRL's evaluation mode re-shards only where fsdp_size > 1, and its default is -1.
    """
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()
        elif isinstance(unit, FSDP) and unit._handle is not None and unit._handle.uses_sharded_strategy:
            unit._handle.reshard(True)


def settle(module: torch.nn.Module) -> None:
    """Re-shard, and wait for copies: veRL offloads without blocking, and a host read would come too early."""
    reshard(module)
    get_torch_device().synchronize()


def shards(module: torch.nn.Module, names: Container[str] | None = None) -> Iterator[torch.Tensor]:
    """This rank's part of every parameter (or of those named), in the module's order.

    The module has to be sharded at the time.
    """
    for name, parameter in module.named_parameters():
        if names is None or name in names:
            yield parameter.to_local() if isinstance(parameter, DTensor) else parameter.data


def step_and_measure(
    teacher: Iterable[torch.Tensor], student: Iterable[torch.Tensor], settings: TeacherConfig
) -> float:
    """The EMA step (of an `ema` teacher); ||theta' - theta|| / ||theta|| afterwards, over the tensors of all ranks."""
    is_averaged = settings.kind == "ema"
    sums = ema_step(teacher, student, settings.ema_rate) if is_averaged else squared_distance(teacher, student)
    sums = sums.to(get_device_name())
    dist.all_reduce(sums)
    return (sums[0] / sums[1]).sqrt().item()


class TeacherWeights:
    """Averages, measures, saves and restores the weights of one teacher engine against the student's."""

    def __init__(self, teacher: SrpoEngine, student: SrpoEngine, srpo: SrpoConfig):
        self.teacher, self.student, self.config = teacher, student, srpo.teacher

    @contextmanager
    def scoring(self) -> Iterator[SrpoEngine]:
        """The engine that scores as the teacher."""
        yield self.teacher

    def step(self) -> float:
        """The EMA step of one training step; returns the relative L2 distance to the student afterwards.

        Nothing is averaged for a frozen teacher.
        """
        settle(self.teacher.module)
        settle(self.student.module)
        return step_and_measure(shards(self.teacher.module), shards(self.student.module), self.config)

    def save(self, actor_path: str, global_step: int, max_to_keep: int | None) -> None:
        """Save beside veRL's actor checkpoint. A frozen teacher is the initial model, so nothing is written."""
        if self.config.kind == "ema":
            self.teacher.save_checkpoint(
                teacher_folder(actor_path), global_step=global_step, max_ckpt_to_keep=max_to_keep
            )

    def load(self, actor_path: str) -> None:
        """Restore what `save` wrote. Raises FileNotFoundError where that is not there, or a LoRA run's teacher is."""
        if self.config.kind != "ema":
            return
        folder = teacher_folder(actor_path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(no_teacher(folder))
        if holds_adapters(folder):
            raise FileNotFoundError(
                f"{folder}: this teacher is that of a LoRA run, adapters without a base; resume with the run's "
                "actor_rollout_ref.model.lora_rank, or start from the model's weights (trainer.resume_mode=disable)"
            )
        self.teacher.load_checkpoint(folder, del_local_after_load=False)
        reshard(self.teacher.module)


def teacher_folder(actor_path: Any) -> str:
    """Where the teacher of the checkpoint with this actor folder is."""
    return os.path.join(os.path.dirname(os.path.normpath(actor_path)), CHECKPOINT_FOLDER)


def holds_adapters(folder: str) -> bool:
    """Whether a teacher's folder is that of a LoRA run."""
    return any(name.startswith("adapters_world_size_") for name in os.listdir(folder))


def no_teacher(folder: str) -> str:
    """What to say where a checkpoint has no teacher."""
    return (
        f"{folder}: this checkpoint holds no EMA teacher, so the average would silently start anew; it was "
        "written with srpo.routing=none or another trainer. Resume with srpo.teacher.kind=frozen or live, or "
        "start from the model's weights (trainer.resume_mode=disable)"
    )

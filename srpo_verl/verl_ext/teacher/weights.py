"""The teacher as a second model: its engine, its average, its checkpoint. For LoRA see adapters.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

from verl.trainer.config import CheckpointConfig
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.installation import TEACHER_TYPE
from srpo_verl.verl_ext.engine import SrpoEngine
from srpo_verl.verl_ext.teacher.averaging import keeps_on_cpu, step_and_measure
from srpo_verl.verl_ext.teacher.files import holds_adapters, no_teacher, teacher_folder
from srpo_verl.verl_ext.teacher.sharding import reshard, settle, shards


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

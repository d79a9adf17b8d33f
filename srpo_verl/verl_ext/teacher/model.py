"""What the worker asks of a teacher, whatever it is made of, and the making of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from verl.utils.memory_utils import aggressive_empty_cache
from verl.workers.engine_workers import TrainingWorker

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.verl_ext.engine import SrpoEngine
from srpo_verl.verl_ext.teacher.adapters import AdapterWeights
from srpo_verl.verl_ext.teacher.weights import TeacherWeights, build_teacher


class TeacherModel(Protocol):
    """The weights of a teacher beside the student's. All methods are collectives: every rank has to call them."""

    def scoring(self) -> AbstractContextManager[SrpoEngine]:
        """The engine that scores as the teacher, for the time of the context."""

    def step(self) -> float:
        """The EMA step of one training step; the relative L2 distance to the student afterwards."""

    def save(self, actor_path: str, global_step: int, max_to_keep: int | None) -> None:
        """Save beside veRL's actor checkpoint."""

    def load(self, actor_path: str) -> None:
        """Restore what `save` wrote. Raises FileNotFoundError or ValueError where there is none that fits."""


def make_teacher(actor: TrainingWorker, srpo: SrpoConfig) -> TeacherModel | None:
    """The teacher of an actor that has just been built; None where the student is its own, or none is needed."""
    if not srpo.needs_teacher_copy:
        return None
    if actor.model_config.lora_rank > 0:
        return AdapterWeights(actor.engine, srpo)
    teacher = TeacherWeights(build_teacher(actor.config, srpo), actor.engine, srpo)
    # As veRL does after its own models: the rollout engine is about to measure how much memory is free.
    aggressive_empty_cache(force_sync=True)
    return teacher

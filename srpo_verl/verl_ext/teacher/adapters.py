"""The teacher of a LoRA run: averaged adapters that share the student's base model and its engine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from verl.utils.device import get_device_name, get_torch_device
from verl.utils.fsdp_utils import FSDPModule

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.verl_ext.engine import SrpoEngine
from srpo_verl.verl_ext.teacher.averaging import keeps_on_cpu, step_and_measure
from srpo_verl.verl_ext.teacher.files import ADAPTER_FILE, holds_adapters, no_teacher, teacher_folder
from srpo_verl.verl_ext.teacher.sharding import settle, shards


class AdapterWeights:
    """This rank's part of the teacher's adapters, in fp32, lent to the student's engine while it scores.

    Adapters are the trainable parameters. All others are the base: it never changes, so student and teacher share it.
    Under FSDP1 a parameter is the flat parameter of a unit, whose weights are either all trainable or all frozen.
    """

    def __init__(self, student: SrpoEngine, srpo: SrpoConfig):
        """Start from the student's adapters as they are now. No forward may have run yet."""
        self.student, self.config = student, srpo.teacher
        trainable = {name: p.requires_grad for name, p in student.module.named_parameters()}
        # By name from here on: peft clears requires_grad wherever it disables adapters for a while.
        self.names = [name for name, learns in trainable.items() if learns]
        if not self.names or len(self.names) == len(trainable):
            raise ValueError("actor_rollout_ref.model.lora_rank is set, but the model is not base and adapters")
        device = "cpu" if keeps_on_cpu(self.config, student.engine_config) else get_device_name()
        get_torch_device().synchronize()
        self.average = [shard.detach().to(device, torch.float32, copy=True) for shard in self._adapters()]
        self._saved: list[str] = []

    def _adapters(self) -> Iterator[torch.Tensor]:
        """The student's shards of the adapters, in place, in the order of `names`."""
        return shards(self.student.module, set(self.names))

    @contextmanager
    def scoring(self) -> Iterator[SrpoEngine]:
        """The student's engine with the teacher's adapters; afterwards it has its own again, to the bit."""
        settle(self.student.module)
        own = [shard.clone() for shard in self._adapters()]
        try:
            self._write(self.average)
            yield self.student
        except BaseException:
            # In the middle of a forward FSDP2 does not re-shard units that are to stay gathered after it.
            for unit in self.student.module.modules():
                if isinstance(unit, FSDPModule):
                    unit.set_reshard_after_forward(True)
            raise
        finally:
            # Offloading inside may have moved the shards, so they are looked up again.
            settle(self.student.module)
            self._write(own)

    def _write(self, values: Iterable[torch.Tensor]) -> None:
        with torch.no_grad():
            for shard, value in zip(self._adapters(), values, strict=True):
                shard.copy_(value)

    def step(self) -> float:
        """The EMA step of one training step; returns the relative L2 distance of the adapters afterwards.

        Nothing is averaged for a frozen teacher.
        """
        settle(self.student.module)
        return step_and_measure(self.average, self._adapters(), self.config)

    def save(self, actor_path: str, global_step: int, max_to_keep: int | None) -> None:
        """Save the adapters beside veRL's actor checkpoint, the frozen teacher's as well.

        peft initialises adapters at random, so a frozen teacher's cannot be made again from what is on disk.
        """
        folder = teacher_folder(actor_path)
        os.makedirs(folder, exist_ok=True)
        average = {name: value.cpu() for name, value in zip(self.names, self.average, strict=True)}
        torch.save({"kind": self.config.kind, "average": average}, self._file(folder))
        dist.barrier()
        if dist.get_rank() == 0 and max_to_keep:
            self._saved = [path for path in self._saved if path != folder] + [folder]
            while len(self._saved) > max_to_keep:
                shutil.rmtree(self._saved.pop(0), ignore_errors=True)

    def load(self, actor_path: str) -> None:
        """Restore what `save` wrote.

        A frozen teacher stays the initial one where the checkpoint's is of another kind or absent. For an EMA that
        raises FileNotFoundError, and so does a teacher of the full model or of another number of ranks; adapters of
        other shapes raise ValueError.
        """
        folder = teacher_folder(actor_path)
        path = self._file(folder)
        state = torch.load(path, weights_only=True) if os.path.isfile(path) else None
        if state is None or state["kind"] != self.config.kind:
            if self.config.kind == "frozen":
                return
            raise FileNotFoundError(_why_missing(folder, path))
        saved = state["average"]
        wanted = {name: value.shape for name, value in zip(self.names, self.average, strict=True)}
        if {name: value.shape for name, value in saved.items()} != wanted:
            raise ValueError(
                f"{path}: the teacher's adapters are not those of this run; resume with the same lora_rank, "
                "target_modules, actor.strategy and number of ranks"
            )
        for name, value in zip(self.names, self.average, strict=True):
            value.copy_(saved[name])

    @staticmethod
    def _file(folder: str) -> str:
        name = ADAPTER_FILE.format(world_size=dist.get_world_size(), rank=dist.get_rank())
        return os.path.join(folder, name)


def _why_missing(folder: str, path: str) -> str:
    if os.path.isfile(path) or not os.path.isdir(folder):
        return no_teacher(folder)
    if holds_adapters(folder):
        return f"{path} is missing: this checkpoint's teacher was saved by another number of ranks"
    return (
        f"{folder}: this teacher is a full model and the run trains LoRA adapters; resume with "
        "actor_rollout_ref.model.lora_rank=0, or start from the model's weights (trainer.resume_mode=disable)"
    )

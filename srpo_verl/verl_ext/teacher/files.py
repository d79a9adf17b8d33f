"""Where the teacher of a checkpoint is, and what to say where it is not."""

from __future__ import annotations

import os
from typing import Any

CHECKPOINT_FOLDER = "srpo_teacher"
"""Beside veRL's `actor` folder in global_step_N."""

ADAPTER_FILE = "adapters_world_size_{world_size}_rank_{rank}.pt"
"""One rank's part of a LoRA run's teacher in that folder; a full teacher has veRL's own files there."""


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

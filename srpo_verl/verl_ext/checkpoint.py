"""Whether a checkpoint's shards are those of as many ranks as a run has, and whole."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

from srpo_verl.checkpoints import whole

_SHARD = re.compile(r"(?:model|adapters)_world_size_(\d+)_rank_\d+\.pt")


def check_ranks(folder: str, ranks: int) -> None:
    """Raise ValueError where a folder holds the weights of another number of ranks, and of no such one.

    veRL names shards by the number of ranks, and loads the optimizer's and the teacher's as they were cut.
    """
    if not os.path.isdir(folder):
        return
    found = sorted({int(match[1]) for name in os.listdir(folder) if (match := _SHARD.fullmatch(name))})
    if not found or ranks in found:
        return
    saved = " or ".join(str(count) for count in found)
    step = os.path.dirname(os.path.normpath(folder))
    raise ValueError(
        f"{folder}: saved by {saved} ranks, and this run has {ranks} (trainer.n_gpus_per_node times trainer.nnodes). "
        f"The shards of optimizer and teacher cannot be cut anew: resume with {saved} ranks, or begin a new run from "
        f"the trained weights, with another optimizer state and teacher: python -m srpo_verl export {step} --out DIR, "
        "then actor_rollout_ref.model.path=DIR and another trainer.default_local_dir"
    )


def check_shards(folder: str, rank: int, ranks: int) -> None:
    """Raise ValueError where one of this rank's files in a folder of FSDP shards is missing, cut off or changed."""
    if not os.path.isdir(folder):
        return
    # What torch.load would report of a file cut off in the middle says neither which one nor what to do.
    for kind in ("model", "optim", "extra_state", "adapters"):
        path = Path(folder) / f"{kind}_world_size_{ranks}_rank_{rank}.pt"
        others = any(path.parent.glob(f"{kind}_world_size_{ranks}_rank_*.pt"))
        if (path.exists() and not _intact(path)) or (others and not path.exists()):
            how = "is half-written or damaged" if path.exists() else "is missing"
            raise ValueError(f"{path} {how}; {_other_checkpoints(Path(folder).parent)}")


def _intact(path: Path) -> bool:
    """By the checksums that torch.save writes and torch.load does not look at; reads the file once."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def _other_checkpoints(step: Path) -> str:
    good = [str(checkpoint.folder) for checkpoint in whole(step.parent) if checkpoint.folder.name != step.name]
    if not good:
        return "no other checkpoint is beside it: begin anew (trainer.resume_mode=disable)"
    return f"resume from another one: trainer.resume_mode=resume_path trainer.resume_from_path={good[-1]}"

"""Whether a checkpoint's shards are those of as many ranks as a run has."""

from __future__ import annotations

import os
import re

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
        f"the trained weights, with another optimizer state and teacher: python -m srpo_verl.export {step} --out DIR, "
        "then actor_rollout_ref.model.path=DIR and another trainer.default_local_dir"
    )

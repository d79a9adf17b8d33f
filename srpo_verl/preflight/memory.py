"""Host memory for the teacher's scores over the full vocabulary, before a run begins."""

from __future__ import annotations

from pathlib import Path

import psutil
from omegaconf import DictConfig

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.errors import ConfigError

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


def full_vocabulary_error(config: DictConfig, srpo: SrpoConfig, vocab_size: int) -> ConfigError | None:
    """What is wrong with top_k=null where the scores of one training step would not fit on this machine.

    They live on the host from the teacher pass to the end of the update: a number per response token and id of the
    vocabulary, for every row if all are distilled and as long as they may be.
    """
    if srpo.distillation.top_k is not None:
        return None
    rows, length = config.data.train_batch_size * config.actor_rollout_ref.rollout.n, config.data.max_response_length
    needed = full_vocabulary_bytes(rows, length, vocab_size) / config.trainer.nnodes
    available = available_host_bytes()
    if needed <= available:
        return None
    return ConfigError(
        "srpo.distillation.top_k",
        None,
        f"takes up to {needed / GIB:,.1f} GiB of host memory ({rows} rows x {length} response tokens x "
        f"{vocab_size} ids x 4 bytes over {config.trainer.nnodes} machines), and {available / GIB:,.1f} GiB are "
        "available here; set it to a number, such as 100, or lower data.train_batch_size, rollout.n or "
        "data.max_response_length",
    )


def full_vocabulary_bytes(rows: int, response_length: int, vocab_size: int) -> int:
    """fp32 log-probs of the whole vocabulary at every response token."""
    return rows * response_length * vocab_size * 4


def available_host_bytes(cgroup: Path = CGROUP) -> int:
    """What processes can still take on this machine, or in this container where that is less (cgroup v2)."""
    available = psutil.virtual_memory().available
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - int(used)))

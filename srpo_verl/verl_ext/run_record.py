"""The run's record beside its log: what the report groups and names runs by."""

from __future__ import annotations

import importlib.metadata
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.tracking import Tracking

from srpo_verl.run_files import record_path, write_json

SECTIONS = ("srpo", "data", "actor_rollout_ref", "algorithm", "trainer")
"""Parts of the configuration that are kept. What may hold credentials, such as the workers' environment, is not."""
LEFT_OUT = {"trainer": ("wandb_proxy",)}
PACKAGES = ("srpo-verl", "verl", "torch", "transformers")


def log_of(logger: Tracking) -> Path | None:
    """The file that veRL's logger `file` writes; None without that logger."""
    file = logger.logger.get("file")
    return None if file is None else Path(file.filepath)


def write_record(log: Path, config: DictConfig, *, first_step: int) -> None:
    """Write what the run is: its configuration with all defaults, versions, the first step of this attempt."""
    kept: dict[str, Any] = {}
    for name in SECTIONS:
        section: Any = OmegaConf.to_container(config[name], resolve=True)
        kept[name] = {key: value for key, value in section.items() if key not in LEFT_OUT.get(name, ())}
    # Only the workers read this copy.
    kept["actor_rollout_ref"].pop("srpo", None)
    content = {
        # What attempts of one run have in common, wherever their logs are.
        "checkpoints": os.path.abspath(config.trainer.default_local_dir),
        "config": kept,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "first_step": first_step,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(record_path(log), content)

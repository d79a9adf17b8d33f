"""Every attempt of a run keeps its log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def log_path(project: str, experiment: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Where veRL's logger `file` will write."""
    if "VERL_FILE_LOGGER_PATH" in environment:
        return Path(environment["VERL_FILE_LOGGER_PATH"])
    return Path(environment.get("VERL_FILE_LOGGER_ROOT", ".")).expanduser() / project / f"{experiment}.jsonl"

"""Every attempt of a run keeps its log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from srpo_verl.run_files import record_path


def log_path(project: str, experiment: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Where veRL's logger `file` will write."""
    if "VERL_FILE_LOGGER_PATH" in environment:
        return Path(environment["VERL_FILE_LOGGER_PATH"])
    return Path(environment.get("VERL_FILE_LOGGER_ROOT", ".")).expanduser() / project / f"{experiment}.jsonl"


def keep_log(path: Path) -> Path | None:
    """Put the log of an earlier attempt aside, where a report still finds it; return where.

    veRL empties the log that it finds. It goes into attempt-1/, attempt-2/ and so on beside it, under its own name.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return None
    number = 1
    while (path.parent / f"attempt-{number}" / path.name).exists():
        number += 1
    aside = path.parent / f"attempt-{number}"
    aside.mkdir(exist_ok=True)
    for one in (record_path(path), path):
        if one.exists():
            os.replace(one, aside / one.name)
    return aside / path.name

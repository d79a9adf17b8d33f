"""Where a run's log is, and that every attempt keeps its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from srpo_verl.run_files import record_path

RUNS = Path("outputs")
"""Of a run's folder, RUNS/project/experiment, in the working directory; the configurations name it as well."""
PATH, ROOT = "VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT"
"""veRL's variables for the logger `file`."""


def log_path(project: str, experiment: str, environment: Mapping[str, str] | None = None) -> Path:
    """Where the logger `file` writes: as veRL's variables say, else in the run's folder (`write_there`).

    Args:
        environment: of the run; None: this process's.
    """
    environment = os.environ if environment is None else environment
    if PATH in environment:
        return Path(environment[PATH])
    if ROOT in environment:
        return Path(environment[ROOT]).expanduser() / project / f"{experiment}.jsonl"
    return RUNS / project / experiment / "metrics.jsonl"


def write_there(path: Path) -> None:
    """Let veRL's logger `file` of this process write to a path, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ[PATH] = str(path)


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

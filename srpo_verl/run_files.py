"""What a run leaves beside its log, by the log's name: the trainer writes it, the report reads it.

A log `srpo.jsonl` (veRL's logger `file`) has beside it `srpo.run.json`, the configuration it ran with, and
`srpo.tokens/`, samples of rollouts token by token, one file per sampled step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from srpo_verl.whole_file import write_whole

_STEP = "step_{:06d}.json"


def record_path(log: Path) -> Path:
    """The run's record: configuration, versions, when it began."""
    return log.with_suffix(".run.json")


def samples_folder(log: Path) -> Path:
    """Folder of the token samples."""
    return log.with_suffix(".tokens")


def sample_paths(log: Path) -> dict[int, Path]:
    """The token samples that are there, by training step."""
    found = {}
    for path in sorted(samples_folder(log).glob("step_*.json")):
        number = path.stem.removeprefix("step_")
        if number.isdecimal():
            found[int(number)] = path
    return found


def sample_path(log: Path, step: int) -> Path:
    """Where the sample of a step belongs."""
    return samples_folder(log) / _STEP.format(step)


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all, on one line without spaces."""
    write_whole(path, json.dumps(content, separators=(",", ":"), allow_nan=False))

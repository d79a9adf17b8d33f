"""Compact logs of the study: one JSON-lines file per run, a header and one line per step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.mini.plan import Cell

KEPT = (
    "srpo/",
    "val-core/",
    "critic/score/mean",
    "response_length/mean",
    "response_length/max",
    "response_length/clip_ratio",
    "actor/entropy",
    "actor/grad_norm",
    "timing_s/step",
    "timing_s/gen",
    "timing_s/old_log_prob",
    "timing_s/update_actor",
    "timing_s/srpo_teacher",
)
"""Beginnings of the metrics that are kept."""
DIGITS = 5


@dataclass(frozen=True)
class Log:
    """A finished run."""

    cell: Cell
    header: dict[str, Any]
    steps: dict[int, dict[str, float]]
    """Metrics by step."""


def compact(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are kept, in five significant digits."""
    kept = {name: value for name, value in metrics.items() if name.startswith(KEPT)}
    return {
        name: float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None  # type: ignore[misc]
        for name, value in sorted(kept.items())
    }


def write(path: Path, cell: Cell, header: Mapping[str, Any], steps: Mapping[int, Mapping[str, float]]) -> None:
    """Write a finished run's log; a file that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w") as stream:
        stream.write(json.dumps({"cell": asdict(cell), **header}) + "\n")
        for step, metrics in sorted(steps.items()):
            stream.write(json.dumps({"step": step, **compact(metrics)}) + "\n")
    os.replace(unfinished, path)


def read(path: Path) -> Log:
    """Read one log.

    Raises:
        ValueError: a file that is not one; names it.
    """
    try:
        header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        cell = Cell(**header.pop("cell"))
        return Log(cell, header, {line.pop("step"): line for line in lines})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a log of the study: {error}") from error


def read_all(folder: Path) -> Iterator[Log]:
    """Every log of a folder, in the order of names."""
    for path in sorted(folder.glob("*.jsonl")):
        yield read(path)

"""Compact logs of the study: one JSON-lines file per run, a header and one line per set of steps."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.mini.plan import ALONE, METHODS, Cell
from srpo_verl.guards.history import WATCHED
from srpo_verl.whole_file import write_whole

KEPT = (
    *sorted(WATCHED),
    "val-core/",
    "critic/score/mean",
    "response_length/max",
    "response_length/clip_ratio",
    "timing_s/step",
    "timing_s/gen",
    "timing_s/update_actor",
    "srpo/frac_",
    "srpo/grpo_loss",
    "srpo/sdpo_loss",
    "srpo/student_teacher_divergence",
    "srpo/teacher_entropy_mean",
    "srpo/weight_std",
)
"""Beginnings of the metrics that are kept: what the guards read, and what the findings are made of."""
DIGITS = 4


@dataclass(frozen=True)
class Log:
    """A finished run."""

    cell: Cell
    header: dict[str, Any]
    steps: dict[int, dict[str, float]]
    """Metrics by step."""


def folder_of(part: str, results: Path) -> Path:
    """Folder of a part's logs."""
    return results / "alone" if part == ALONE else results


def _short(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def write(path: Path, cell: Cell, header: Mapping[str, Any], steps: Mapping[int, Mapping[str, float]]) -> None:
    """Write a finished run's log, in four significant digits; a file that exists is complete.

    A metric's values stand in one list, beside the others that were logged at the same steps: a tenth of the size of
    a line per step.
    """
    series: dict[str, dict[int, float | None]] = defaultdict(dict)
    for step, metrics in sorted(steps.items()):
        for name, value in metrics.items():
            if name.startswith(KEPT):
                series[name][step] = _short(value)
    groups: dict[tuple[int, ...], dict[str, list[float | None]]] = defaultdict(dict)
    for name, values in sorted(series.items()):
        groups[tuple(values)][name] = list(values.values())
    lines = [json.dumps({"cell": asdict(cell), "title": METHODS[cell.method].title, **header})]
    lines += [
        json.dumps({"steps": at, "metrics": metrics}, separators=(",", ":")) for at, metrics in sorted(groups.items())
    ]
    write_whole(path, "\n".join(lines) + "\n")


def read(path: Path) -> Log:
    """Read one log; values that were not finite are left out.

    Raises:
        ValueError: a file that is not one; names it.
    """
    try:
        header, *groups = [json.loads(line) for line in path.read_text().splitlines()]
        cell = Cell(**header.pop("cell"))
        header.pop("title", None)  # for the report, which does not know the plan
        steps: dict[int, dict[str, float]] = defaultdict(dict)
        for group in groups:
            for name, values in group["metrics"].items():
                for step, value in zip(group["steps"], values, strict=True):
                    if value is not None:
                        steps[step][name] = value
        return Log(cell, header, dict(sorted(steps.items())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a log of the study: {error}") from error


def read_all(folder: Path) -> Iterator[Log]:
    """Every log of a folder, in the order of names."""
    for path in sorted(folder.glob("*.jsonl")):
        yield read(path)

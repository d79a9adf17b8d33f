"""The lines of the check, and its table. Standard library only."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from srpo_verl.markdown import markdown_table

PASS, FAIL, INACTIVE = "PASS", "FAIL", "INACTIVE"


@dataclass(frozen=True)
class Line:
    """One thing that was checked, or why it was not."""

    part: str
    name: str
    status: str
    detail: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def limited(part: str, name: str, figures: Mapping[str, float], limits: Mapping[str, float], detail: str = "") -> Line:
    """PASS where every limited figure is there and at most its limit; a figure that is not a number is above it."""
    over = [
        f"{key} is {figures[key]:.3g}, at most {limit:g}" if key in figures else f"{key} is missing"
        for key, limit in limits.items()
        if key not in figures or not figures[key] <= limit
    ]
    return Line(part, name, FAIL if over else PASS, "; ".join([*over, *([detail] if detail else [])]), figures)


def guarded(part: str, name: str, work: Callable[[], Line]) -> Line:
    """The line of `work`; FAIL with the last line of the error where it raises, so that the other lines still run."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        return Line(part, name, FAIL, f"{type(error).__name__}: {message[:300]}")


def as_json(machine: Mapping[str, Any], lines: Iterable[Line]) -> dict[str, Any]:
    """Everything, for a file."""
    return {"machine": dict(machine), "lines": [asdict(line) for line in lines]}


def as_markdown(machine: Mapping[str, Any], lines: Iterable[Line]) -> str:
    """A heading with the machine, and a row per line."""
    rows = [
        (line.part, line.name, line.status, ", ".join(f"{k} {v:.4g}" for k, v in line.figures.items()), line.detail)
        for line in lines
    ]
    table = markdown_table(("Part", "Check", "", "Figures", ""), rows)
    told = [f"* {key}: {value}" for key, value in machine.items()]
    return "\n".join(["# Check of a machine", "", *told, "", table, ""])

"""The report as one HTML file that needs nothing else: styles, script, figures and samples are in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from srpo_verl import __version__
from srpo_verl.report import paper
from srpo_verl.report.figures import Colors, Figure
from srpo_verl.report.groups import Group
from srpo_verl.report.run import Run
from srpo_verl.report.tables import Ablation, Cell, TaskTable
from srpo_verl.report.token_view import COLORINGS
from srpo_verl.report.warnings import Warning, by_group


@dataclass(frozen=True)
class Content:
    """Everything the page shows."""

    groups: Sequence[Group]
    overview: Sequence[dict[str, str]]
    tables: Sequence[TaskTable]
    ablation: Ablation | str
    figures: Sequence[Figure]
    left_out: dict[str, str]
    samples: Sequence[dict[str, Any]]
    warnings: Sequence[Warning]
    notes: Sequence[str]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]


def html(content: Content) -> str:
    """The page. Whatever comes from logs, names or model output is escaped, or is text inside JSON."""
    environment = Environment(
        loader=PackageLoader("srpo_verl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _asset("page.js")
    return environment.get_template("page.html").render(
        content=content,
        title=_title(content),
        lead=_lead(content),
        paper=paper,
        rows=_rows(content),
        warnings=by_group(content.groups, content.warnings),
        average_methods=_average_methods(content),
        methods_of={group.label: group.method for group in content.groups},
        colors=Colors(content.groups),
        seeds_of=_seeds_of(content.groups),
        best_of=_best_of,
        starred=any(cell.ended_before for table in content.tables for row in table.rows.values() for cell in row),
        colorings=COLORINGS,
        samples=embedded(content.samples),
        provenance=_provenance(content.runs),
        version=__version__,
        style=_asset("style.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def embedded(value: Any) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _asset(name: str) -> Markup:
    loader = PackageLoader("srpo_verl.report")
    return Markup(loader.get_source(Environment(autoescape=True), name)[0])


def _title(content: Content) -> str:
    methods = list(dict.fromkeys(group.method for group in content.groups))
    return " · ".join(methods[:4]) + (f" and {len(methods) - 4} more" if len(methods) > 4 else "")


def _lead(content: Content) -> str:
    """One sentence on what the page stands on."""
    runs, tasks = content.runs, [task for task in dict.fromkeys(group.task for group in content.groups) if task]
    counts = sorted({len(group.runs) for group in content.groups})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    on = f" on {', '.join(tasks)}" if tasks else ""
    if len(runs) == 1:
        return f"One run{on}. One seed says nothing of another: no spread is known."
    lead = f"{len(runs)} runs{on}: {len(content.groups)} configuration{'s' * (len(content.groups) > 1)}, "
    lead += f"{seeds} seed{'s' * (counts != [1])} each."
    return lead + (" One seed says nothing of another: no spread is known." if counts == [1] else "")


def _rows(content: Content) -> list[str]:
    """Labels of Table 1, in the order of the groups."""
    labels = dict.fromkeys(group.label for group in content.groups)
    return [label for label in labels if any(label in table.rows for table in content.tables)]


def _seeds_of(groups: Sequence[Group]) -> dict[str, str]:
    """Number of runs by label; a label may stand for several tasks."""
    counts: dict[str, list[int]] = {}
    for group in groups:
        counts.setdefault(group.label, []).append(len(group.runs))
    return {label: " to ".join(map(str, sorted({min(found), max(found)}))) for label, found in counts.items()}


def _best_of(table: TaskTable, column: int) -> Cell | None:
    """The cell with the largest mean of a column, where there are several and not two of them are largest."""
    cells = sorted((row[column] for row in table.rows.values() if row[column].values), key=lambda cell: cell.mean)
    return cells[-1] if len(cells) > 1 and cells[-1].mean > cells[-2].mean else None


def _average_methods(content: Content) -> dict[str, tuple[float, ...]]:
    """By label the paper's average over five benchmarks, where the page shows none of the benchmarks themselves."""
    if any(table.of_paper for table in content.tables):
        return {}
    averages = {method: cells["Average"] for method, cells in paper.TABLE_1["Qwen3-8B"].items()} | paper.TABLE_2
    return {group.label: averages[group.method] for group in content.groups if group.method in averages}


def _provenance(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What the runs recorded of where they come from, each value once."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in run.provenance.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            found.setdefault(name, {})[text] = None
    return [(name, "; ".join(values)) for name, values in found.items()]

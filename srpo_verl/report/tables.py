"""Tables 1 and 2 of the paper from one's own runs: best accuracy within budgets, mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from srpo_verl.budget import RECENT_STEPS, SECONDS_PER_HOUR
from srpo_verl.report import paper
from srpo_verl.report.groups import Group
from srpo_verl.report.run import Run, Validation

NOTHING = math.nan


@dataclass(frozen=True)
class Budget:
    """How long a run may have trained: hours, or steps, or as long as it did."""

    name: str
    hours: float | None = None
    step: int | None = None

    def within(self, run: Run, curve: Validation) -> np.ndarray:
        """Which validations lie within it."""
        if self.hours is not None:
            return run.hours(curve.steps) <= self.hours
        return curve.steps <= (np.inf if self.step is None else self.step)

    def used_up(self, run: Run) -> bool:
        """Whether the run trained for as long as the budget allows, to the step."""
        if self.hours is not None:
            return used_up(run, self.hours)
        return self.step is None or max(run.training_steps, default=0) >= self.step


@dataclass(frozen=True)
class Cell:
    """A value over seeds, in percent."""

    values: tuple[float, ...]
    ended_before: bool = False
    """Some run ended before the budget did."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else NOTHING

    @property
    def spread(self) -> float:
        """Sample standard deviation; NaN for a single seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else NOTHING

    def __str__(self) -> str:
        if not self.values:
            return "-"
        star = "*" if self.ended_before else ""
        return f"{self.mean:.1f}{star}" + (f" ± {self.spread:.1f}" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class TaskTable:
    """The part of Table 1 that belongs to one benchmark."""

    title: str
    budgets: list[Budget]
    start: Cell
    rows: dict[str, list[Cell]]
    """By label: a cell per budget, and the last validation."""
    seeds: dict[str, int]
    of_paper: dict[str, tuple[float, ...]]
    """The paper's values by method, where it has this benchmark."""

    @property
    def columns(self) -> list[str]:
        return [*(budget.name for budget in self.budgets), "last"]


def used_up(run: Run, budget: float) -> bool:
    """Whether a step as long as the longest of the last ones would not have fitted any more."""
    _, seconds = run.step_seconds()
    another = float(np.max(seconds[-RECENT_STEPS:])) / SECONDS_PER_HOUR if len(seconds) else 0.0
    return run.total_hours + another > budget


def budgets_of(runs: Sequence[Run], steps: Sequence[int] = ()) -> list[Budget]:
    """The budgets that runs of one task are compared at: steps where given, else the paper's hours that one reached.

    Runs that are shorter than the first hour are looked at after the paper's shares of their common length instead.
    """
    last = [max(run.training_steps, default=0) for run in runs]
    if steps:
        chosen = [Budget(f"step {step}", step=step) for step in steps if step <= max(last)]
        return chosen if chosen and chosen[-1].step == max(last) else [*chosen, Budget("whole run")]
    reached = [budget for budget in paper.BUDGETS_H if any(used_up(run, budget) for run in runs)]
    if reached:
        hours = [Budget(f"{budget} h", hours=budget) for budget in reached]
        longest = max(run.total_hours for run in runs)
        return hours if longest <= reached[-1] * 1.02 else [*hours, Budget("whole run")]
    common, whole = min(last), paper.STEPS_OF_BUDGETS[-1]
    shares = list(dict.fromkeys(max(1, round(common * part / whole)) for part in paper.STEPS_OF_BUDGETS))
    chosen = [Budget(f"step {step}", step=step) for step in shares]
    return chosen if max(last) == common else [*chosen, Budget("whole run")]


def best_within(run: Run, curve: Validation, budget: Budget) -> float:
    """Accuracy in percent of the checkpoint that is best within a budget; NaN where none lies within."""
    index = curve.best(budget.within(run, curve))
    return NOTHING if index is None else 100 * float(curve.values[index])


def table_1(groups: Sequence[Group], steps: Sequence[int] = ()) -> list[TaskTable]:
    """One part per task and benchmark, in the order of the groups."""
    tables = []
    for task in dict.fromkeys(group.task for group in groups):
        of_task = [group for group in groups if group.task == task]
        runs = [run for group in of_task for run in group.runs]
        budgets = budgets_of(runs, steps)
        benchmarks = list(dict.fromkeys(name for run in runs for name in run.validation()))
        for benchmark in benchmarks:
            rows, seeds = {}, {}
            for group in of_task:
                pairs = [(run, run.validation()[benchmark]) for run in group.runs if benchmark in run.validation()]
                pairs = [(run, curve) for run, curve in pairs if len(curve.steps)]
                if pairs:
                    rows[group.label] = [_cell(pairs, budget) for budget in budgets]
                    rows[group.label].append(Cell(tuple(100 * float(curve.values[-1]) for _, curve in pairs)))
                    seeds[group.label] = len(pairs)
            title = (task or benchmark) if len(benchmarks) == 1 else f"{task}: {benchmark}" if task else benchmark
            curves = [run.validation()[benchmark] for run in runs if benchmark in run.validation()]
            start = Cell(tuple(100 * float(c.values[0]) for c in curves if len(c.steps) and c.steps[0] == 0))
            tables.append(TaskTable(title, budgets, start, rows, seeds, _of_paper(title)))
    return tables


def _cell(pairs: Sequence[tuple[Run, Validation]], budget: Budget) -> Cell:
    values = [best_within(run, curve, budget) for run, curve in pairs]
    ended = any(not budget.used_up(run) for run, _ in pairs)
    return Cell(tuple(value for value in values if not math.isnan(value)), ended)


def _of_paper(title: str) -> dict[str, tuple[float, ...]]:
    model = next(
        (
            name
            for name in paper.TABLE_1
            if name.lower().replace("-", "") in title.lower().replace("-", "").replace("_", "")
        ),
        "Qwen3-8B",
    )
    column = next((name for name in paper.COLUMNS if title.startswith(name)), None)
    return {method: cells[column] for method, cells in paper.TABLE_1[model].items()} if column else {}


@dataclass(frozen=True)
class Ablation:
    """Table 2: by method the mean over the tasks at each budget, own values beside the paper's."""

    tasks: list[str]
    columns: list[str]
    rows: Mapping[str, tuple[list[str], tuple[float, ...]]]


def table_2(groups: Sequence[Group], tables: Sequence[TaskTable]) -> Ablation | str:
    """Over the tasks on which all methods of Table 2 that there are were run; or what is lacking.

    Mean over the tasks of the means over seeds; its spread is that of such a mean for independent seeds. Of several
    configurations of a method on a task the one with most seeds counts.
    """
    method_of = {group.label: group.method for group in groups}
    wanted = [method for method in paper.TABLE_2 if method in method_of.values()]
    if len(wanted) < 2:
        return f"runs of at least two of {', '.join(paper.TABLE_2)}"
    shared: list[tuple[TaskTable, dict[str, list[Cell]]]] = []
    for table in tables:
        rows: dict[str, list[Cell]] = {}
        for label in sorted(table.rows, key=lambda label: table.seeds[label]):
            rows[method_of[label]] = table.rows[label]
        if all(method in rows for method in wanted) and not table.title.endswith("average"):
            shared.append((table, rows))
    if not shared:
        return f"a task on which {', '.join(wanted)} were all run"
    columns = [budget.name for budget in shared[0][0].budgets]
    if any([budget.name for budget in table.budgets] != columns for table, _ in shared):
        columns = [f"budget {index + 1}" for index in range(min(len(table.budgets) for table, _ in shared))]
    texts = {
        method: [_mean_of([rows[method][at] for _, rows in shared]) for at in range(len(columns))] for method in wanted
    }
    return Ablation(
        [table.title for table, _ in shared],
        columns,
        {method: (texts[method], paper.TABLE_2[method]) for method in wanted},
    )


def _mean_of(cells: Sequence[Cell]) -> str:
    mean = float(np.mean([cell.mean for cell in cells]))
    spread = math.sqrt(sum(cell.spread**2 for cell in cells)) / len(cells)
    return f"{mean:.1f}" + ("" if math.isnan(spread) else f" ± {spread:.1f}")


def run_frame(groups: Sequence[Group], steps: Sequence[int] = ()) -> pd.DataFrame:
    """One row per run and benchmark, unrounded; accuracies in percent, empty where nothing was measured."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        same_task = [run for other in groups if other.task == group.task for run in other.runs]
        budgets = budgets_of(same_task, steps)
        for run in group.runs:
            base = {
                "run": run.label,
                "group": group.label,
                "task": group.task,
                "seed": run.identity.seed,
                "steps": len(run.training_steps),
                "hours": run.total_hours,
                "s_per_step": float(np.mean(run.step_seconds()[1])) if len(run.step_seconds()[1]) else NOTHING,
            }
            for benchmark, curve in (run.validation() or {"": Validation(*[np.array([])] * 3)}).items():
                best = curve.best()
                rows.append(
                    base
                    | {
                        "benchmark": benchmark,
                        "best_acc": NOTHING if best is None else 100 * float(curve.values[best]),
                        "best_step": None if best is None else int(curve.steps[best]),
                        "last_acc": NOTHING if best is None else 100 * float(curve.values[-1]),
                        "last_step": None if best is None else int(curve.steps[-1]),
                        **{f"best_acc_{b.name.replace(' ', '_')}": best_within(run, curve, b) for b in budgets},
                    }
                )
    return pd.DataFrame(rows).astype({"best_step": "Int64", "last_step": "Int64"})


def group_frame(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean, sample standard deviation, smallest and largest value over the seeds of every group and benchmark."""
    values = [name for name in runs if name.startswith(("best_acc", "last_acc", "hours", "s_per_step"))]
    grouped = runs.groupby(["task", "group", "benchmark"], sort=False)
    frame = grouped[values].agg(["mean", "std", "min", "max"])
    frame.columns = ["_".join(pair) for pair in frame.columns]
    frame.insert(0, "runs", grouped.size())
    return frame.reset_index()


def overview(groups: Sequence[Group]) -> list[dict[str, str]]:
    """What was run: a row per group."""
    rows = []
    for group in groups:
        hours = [run.total_hours for run in group.runs]
        steps = sorted({len(run.training_steps) for run in group.runs})
        seconds = [float(np.mean(run.step_seconds()[1])) for run in group.runs if len(run.step_seconds()[1])]
        rows.append(
            {
                "task": group.task,
                "method": group.label,
                "runs": str(len(group.runs)),
                "seeds": ", ".join(group.seeds) or "not recorded",
                "steps": str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
                "hours": hours_text(float(np.mean(hours))),
                "s/step": f"{np.mean(seconds):.3g}" if seconds else "-",
            }
        )
    return rows


def hours_text(hours: float) -> str:
    """Hours with enough digits for a run of minutes as well."""
    return "-" if math.isnan(hours) else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.4f}"

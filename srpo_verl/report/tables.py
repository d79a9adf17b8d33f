"""What the report says in numbers: Table 1 and Figure 4b per run, the spread over seeds, and the late collapse."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srpo_verl.report.loader import SECONDS_PER_HOUR, Run

BUDGETS_H = (1, 5, 10)
"""Wall-clock budgets of the paper's Table 1 and Figure 4b, in hours of training (`Run.hours`)."""

RECENT_STEPS = 5
"""A budget is used up when a step as long as the longest of this many last ones would not have fitted any more."""

EARLY_STEPS = 10
"""The early level of the response length is the median over this many first steps."""

COLLAPSE_GROWTH = 2.0
COLLAPSE_ENTROPY = 0.1
COLLAPSE_STEPS = 3
"""A collapse is a response length above the early level by this factor while the policy's entropy is below this many
nats, for this many steps in a row (fewer where the log ends)."""

Row = dict[str, Any]


def summary_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per run and benchmark; accuracies in percent, NaN where nothing was measured."""
    rows = []
    for run in runs:
        curves: Mapping[str, tuple[np.ndarray, np.ndarray]] = run.validation() or {
            "": (np.array([], dtype=int), np.array([]))
        }
        for benchmark, (steps, values) in curves.items():
            hours = run.hours(steps)
            row: Row = {
                "run": run.label,
                "experiment": run.experiment,
                "benchmark": benchmark,
                "steps": len(run.training_steps),
                "hours": run.total_hours,
                "best_acc": 100 * float(np.max(values)) if len(values) else math.nan,
                "best_step": int(steps[np.argmax(values)]) if len(values) else None,
                "final_acc": 100 * float(values[-1]) if len(values) else math.nan,
                "final_step": int(steps[-1]) if len(values) else None,
            }
            for budget in BUDGETS_H:
                within = values[hours <= budget]
                row[f"best_acc_{budget}h"] = 100 * float(np.max(within)) if len(within) else math.nan
                row[f"used_up_{budget}h"] = used_up(run, budget)
            rows.append(row | seconds_per_step(run))
    return rows


def used_up(run: Run, budget: float) -> bool:
    """Whether the run trained for as long as the budget allows, to the step."""
    _, seconds = run.step_seconds()
    another = float(np.max(seconds[-RECENT_STEPS:])) / SECONDS_PER_HOUR if len(seconds) else 0.0
    return run.total_hours + another > budget


def seconds_per_step(run: Run) -> Row:
    """Mean seconds and number of the steps from the start to the end of each budget, as in Figure 4b."""
    steps, seconds = run.step_seconds()
    hours = run.hours(steps)
    row: Row = {}
    for budget in BUDGETS_H:
        within = seconds[hours <= budget]
        row[f"s_per_step_{budget}h"] = float(np.mean(within)) if len(within) else math.nan
        row[f"steps_{budget}h"] = len(within)
    return row


def reached_windows(run: Run) -> list[int]:
    """Budgets in which the run was still training: a run of two hours has nothing to say about the third window."""
    hours = run.total_hours
    return [budget for index, budget in enumerate(BUDGETS_H) if index == 0 or hours > BUDGETS_H[index - 1]]


SPREAD_COLUMNS = ("best_acc", "final_acc", *(f"best_acc_{budget}h" for budget in BUDGETS_H), "hours")


def seed_rows(rows: Sequence[Row]) -> list[Row]:
    """Mean, sample standard deviation, smallest and largest value over the runs that share an experiment name."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["experiment"], row["benchmark"]), []).append(row)
    result = []
    for (experiment, benchmark), group in groups.items():
        if len(group) < 2:
            continue
        summary: Row = {"experiment": experiment, "benchmark": benchmark, "runs": len(group)}
        for column in SPREAD_COLUMNS:
            values = np.array([row[column] for row in group if not math.isnan(row[column])])
            summary[f"{column}_mean"] = float(np.mean(values)) if len(values) else math.nan
            summary[f"{column}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            summary[f"{column}_min"] = float(np.min(values)) if len(values) else math.nan
            summary[f"{column}_max"] = float(np.max(values)) if len(values) else math.nan
        result.append(summary)
    return result


@dataclass(frozen=True)
class Collapse:
    """Where responses began to grow while the policy had become nearly deterministic."""

    step: int
    early_length: float
    length: float
    entropy: float


def find_collapse(run: Run) -> Collapse | None:
    """First step of the late collapse other reproductions died of after 220 to 400 steps; None where there is none.

    Both signs are needed: a longer response alone may be better reasoning, a low entropy alone is convergence.
    """
    _, lengths = run.series("response_length/mean")
    if len(lengths) <= EARLY_STEPS:
        return None
    early = float(np.median(lengths[:EARLY_STEPS]))
    later = [step for step in run.training_steps if "response_length/mean" in run.metrics[step]][EARLY_STEPS:]
    collapsed = [
        data["response_length/mean"] > COLLAPSE_GROWTH * early
        and data.get("actor/entropy", math.inf) < COLLAPSE_ENTROPY
        for data in (run.metrics[step] for step in later)
    ]
    for index, step in enumerate(later):
        if all(collapsed[index : index + COLLAPSE_STEPS]):
            data = run.metrics[step]
            return Collapse(step, early, data["response_length/mean"], data["actor/entropy"])
    return None


def warnings(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know before believing a number; one line each, also where a check was impossible."""
    lines = []
    for run in runs:
        absent = [name for name in ("response_length/mean", "actor/entropy") if not len(run.series(name)[0])]
        if absent:
            lines.append(f"{run.label}: not checked for late collapse, {' and '.join(absent)} not logged")
            continue
        collapse = find_collapse(run)
        if collapse is None:
            continue
        line = (
            f"{run.label}: late collapse from step {collapse.step} on: responses of {collapse.length:.0f} tokens, "
            f"{collapse.early_length:.0f} at the start, with an entropy of {collapse.entropy:.3f} nats "
            f"(below {COLLAPSE_ENTROPY})"
        )
        for benchmark, (steps, values) in run.validation().items():
            before = values[steps < collapse.step]
            if len(before) and steps[-1] >= collapse.step:
                line += f"; {benchmark}: best before {100 * before.max():.1f} %, at the end {100 * values[-1]:.1f} %"
        lines.append(f"{line}. Use a checkpoint from before that step")
    return lines


def single_runs(runs: Sequence[Run]) -> list[str]:
    """Experiments of which there is only one run."""
    names = [run.experiment for run in runs]
    return [name for name in dict.fromkeys(names) if names.count(name) == 1]


def number(value: Any, digits: int = 1) -> str:
    """A cell for people: "-" where nothing was measured."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def hours_text(hours: float) -> str:
    """Hours with enough digits for a run of minutes as well."""
    return number(hours, 2 if hours >= 0.1 else 4)


def budget_cells(row: Row, prefix: str) -> list[str]:
    """A star where the run ended before the budget did, so that its value is not read as that of a full one."""
    cells = []
    for budget in BUDGETS_H:
        cell = number(row[f"{prefix}_{budget}h"])
        cells.append(cell if cell == "-" or row[f"used_up_{budget}h"] else f"{cell}*")
    return cells


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *(line(row) for row in rows)])


def short_table(rows: Sequence[Row]) -> str:
    """The console's extract of the summary, in aligned columns."""
    header = ["run", "benchmark", "steps", "hours", "best %", "final %", *(f"{budget}h %" for budget in BUDGETS_H)]
    body = [
        [
            row["run"],
            row["benchmark"] or "-",
            str(row["steps"]),
            hours_text(row["hours"]),
            number(row["best_acc"]),
            number(row["final_acc"]),
            *budget_cells(row, "best_acc"),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in cells).rstrip()
        for cells in (list(enumerate(zip(line, widths, strict=True))) for line in [header, *body])
    )


def markdown(runs: Sequence[Run], notes: Sequence[str], figures: Mapping[str, str]) -> str:
    """The whole summary. `figures` maps file names to captions."""
    rows = summary_rows(runs)
    budgets = [f"{budget}h" for budget in BUDGETS_H]
    parts = ["# Report", "## Warnings"]
    found = warnings(runs)
    parts.append(
        "\n".join(f"* {line}" for line in found)
        if found
        else f"None: after the first {EARLY_STEPS} steps, in no run did responses grow beyond {COLLAPSE_GROWTH:g} "
        f"times their early length while the policy's entropy was below {COLLAPSE_ENTROPY} nats."
    )
    parts += [
        "## Validation accuracy",
        "Mean accuracy over the validation rollouts in percent; best within each wall-clock budget as in Table 1 of "
        "the paper.",
        _markdown_table(
            ["run", "benchmark", "steps", "hours", "best (step)", "final (step)", *(f"best in {b}" for b in budgets)],
            [
                [
                    row["run"],
                    row["benchmark"] or "-",
                    str(row["steps"]),
                    hours_text(row["hours"]),
                    f"{number(row['best_acc'])} ({number(row['best_step'])})",
                    f"{number(row['final_acc'])} ({number(row['final_step'])})",
                    *budget_cells(row, "best_acc"),
                ]
                for row in rows
            ],
        ),
        "## Seconds per training step",
        "Mean from the start to the end of each window as in Figure 4b, with the number of steps in it; validations "
        "and the writing of checkpoints are not part of a step.",
        _markdown_table(
            ["run", *(f"s/step in {b} (steps)" for b in budgets)],
            [
                [
                    row["run"],
                    *(
                        f"{cell} ({row[f'steps_{budget}h']})"
                        for cell, budget in zip(budget_cells(row, "s_per_step"), BUDGETS_H, strict=True)
                    ),
                ]
                for row in {row["run"]: row for row in rows}.values()
            ],
        ),
        "Hours are training time: `srpo/hours`, or where it was not logged the sum of `timing_s/step` without "
        "`timing_s/save_checkpoint`. Start-up, validations, the writing of checkpoints and steps lost in a crash are "
        "not in it. A validation counts for every budget within which its weights existed. `*`: the run ended before "
        "the budget did, by more than one step.",
        "## Spread over seeds",
    ]
    spread = seed_rows(rows)
    if spread:
        columns = ["best_acc", "final_acc", *(f"best_acc_{budget}h" for budget in BUDGETS_H)]
        titles = ["best", "final", *(f"best in {b}" for b in budgets)]
        parts += [
            "Mean ± sample standard deviation (smallest to largest) over runs of the same experiment name.",
            _markdown_table(
                ["experiment", "benchmark", "runs", *titles],
                [
                    [
                        row["experiment"],
                        row["benchmark"] or "-",
                        str(row["runs"]),
                        *(
                            f"{number(row[f'{column}_mean'])} ± {number(row[f'{column}_std'])} "
                            f"({number(row[f'{column}_min'])} to {number(row[f'{column}_max'])})"
                            for column in columns
                        ),
                    ]
                    for row in spread
                ],
            ),
        ]
    alone = single_runs(runs)
    if alone:
        parts.append(
            f"One run only: {', '.join(alone)}. Peak accuracy of the same configuration has been seen to differ by up "
            "to 9 points between runs, so compare experiments by several seeds."
        )
    if figures:
        parts.append("## Figures")
        parts += [f"{caption}\n\n![{caption}]({name})" for name, caption in figures.items()]
    parts.append("## Logs read")
    parts.append("\n".join(f"* {run.label}: {', '.join(f'`{path}`' for path in run.files)}" for run in runs))
    if notes:
        parts.append("\n".join(f"* {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Unrounded values for other programs; an empty cell where nothing was measured."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
            )

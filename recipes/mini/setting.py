"""What the findings stand on: runs, starting models, learning rates; the sections of the page that say so."""

from __future__ import annotations

from collections import Counter

import numpy as np

from recipes.mini import plan
from recipes.mini.best import Study, grid_scores
from recipes.mini.table import mean_and_range, table
from recipes.mini.verdicts import NOT_RUN


def planned(study: Study) -> dict[str, tuple[int, int]]:
    """By part: the runs of the plan, and how many of them are made."""
    names = {log.cell.name for log in study.logs}
    alone = {log.cell.name for log in study.alone}
    # Before rates are chosen only the number of runs is known; one rate for all gives it, without the repetition.
    rates = study.rates or dict.fromkeys(plan.MAIN, 0.0)
    counts = {}
    for part, make in plan.PARTS.items():
        cells = {cell.name for cell in make(rates)}
        counts[part] = (len(cells), len(cells & (alone if part == plan.ALONE else names)))
    return counts


def runs_section(study: Study) -> list[str]:
    """What was run, on what."""
    rows = [(part, str(total), str(made) if made else NOT_RUN) for part, (total, made) in planned(study).items()]
    lines = ["## What was run", "", *table(("part", "runs planned", "made"), rows), ""]
    if not study.logs:
        return lines[:-1]
    headers = [log.header for log in (*study.logs, *study.alone)]
    commits = Counter(header["commit"][:7] for header in headers)
    hardware = Counter(header["hardware"] for header in headers)
    versions = Counter(
        ", ".join(f"{name} {version}" for name, version in header["versions"].items()) for header in headers
    )
    said = "; ".join(", ".join(sorted(counter)) for counter in (commits, hardware, versions))
    return [*lines, f"Commit {said}. The command of every run is the first line of its log."]


def models_section(study: Study) -> list[str]:
    """Starting accuracy, and what a demonstration does to it."""
    rows = []
    for task in plan.TASKS:
        starts = {log.cell.seed: log.header["start"] for log in study.logs if log.cell.task == task}
        if not starts:
            rows.append((task, NOT_RUN, NOT_RUN, "0"))
            continue
        shown = [
            mean_and_range(start[name] for start in starts.values())
            for name in ("accuracy_plain", "accuracy_demonstration")
        ]
        rows.append((task, *shown, str(len(starts))))
    header = ("task", "accuracy at the start", "with a demonstration", "models")
    return [
        "## Starting models",
        "",
        "Mean, and smallest and largest over seeds, of 512 questions.",
        "",
        *table(header, rows),
    ]


def grid_section(study: Study) -> list[str]:
    """Mean validation accuracy by method and learning rate."""
    scores = grid_scores(study.logs)
    rows = []
    for method in plan.MAIN:
        values = [scores.get(method, {}).get(rate) for rate in plan.GRID]
        cells = [NOT_RUN if value is None else f"{np.mean(value):.3f}" for value in values]
        if method in study.rates:
            chosen = plan.GRID.index(study.rates[method])
            cells[chosen] = f"**{cells[chosen]}**"
        rows.append((plan.METHODS[method].title, *cells))
    return [
        "## Learning rates",
        "",
        f"Mean validation accuracy over a run of {plan.GRID_STEPS} steps on {plan.GRID_TASK}, seed "
        f"{', '.join(map(str, plan.GRID_SEEDS))}; in bold the rate that is used.",
        "",
        *table(("method", *(f"{rate:g}" for rate in plan.GRID)), rows),
    ]

"""Figures of the findings page."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from recipes.mini import plan, verdicts
from recipes.mini.best import Study, accuracy

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

CURVES, DIFFERENCES, LONG = "findings_curves.svg", "findings_differences.svg", "findings_long.svg"
COLORS = {
    "grpo": "tab:blue",
    "sdpo": "tab:red",
    "srpo": "tab:green",
    "handover": "tab:purple",
    plan.KEPT: "tab:orange",
    "anneal": "tab:brown",
}
# The same figure is the same file.
_STYLE = {"svg.hashsalt": "srpo", "svg.fonttype": "path", "figure.constrained_layout.use": True}


def curves(study: Study, folder: Path) -> Path | None:
    """Test accuracy over steps by task and method: mean over seeds, band from the smallest to the largest seed."""
    tasks = [
        task for task in plan.TASKS if any(log.cell.task == task for m in plan.EVERYWHERE for log in study.runs(m))
    ]
    if not tasks:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(1, len(tasks), figsize=(3.2 * len(tasks), 3.3), sharey=True, squeeze=False)
        lines = {}
        for axis, task in zip(axes[0], tasks, strict=True):
            seeds = []
            for method in plan.EVERYWHERE:
                runs = [log for log in study.runs(method) if log.cell.task == task]
                if not runs:
                    continue
                steps = sorted(set.intersection(*(set(accuracy(log, "test")) for log in runs)))
                values = np.array([[accuracy(log, "test")[step] for step in steps] for log in runs])
                (lines[plan.METHODS[method].title],) = axis.plot(steps, values.mean(axis=0), color=COLORS[method])
                seeds.append(len(runs))
                if len(runs) > 1:
                    axis.fill_between(
                        steps, values.min(axis=0), values.max(axis=0), color=COLORS[method], alpha=0.15, linewidth=0
                    )
            count = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
            axis.set(title=f"{task} ({count} seeds)", xlabel="step", ylim=(0, 1.02))
            axis.grid(alpha=0.3)
        axes[0][0].set_ylabel("test accuracy")
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
        return _save(figure, folder / CURVES)


def has_differences(study: Study) -> bool:
    """Whether a method has runs beside GRPO's."""
    return any(study.scores(method, "best", verdicts.END) for method in plan.EVERYWHERE[1:]) and bool(
        study.runs("grpo")
    )


def differences(study: Study, folder: Path) -> Path | None:
    """Of each method to GRPO with its interval, over all tasks and by task; a dot is filled where it is decided."""
    if not has_differences(study):
        return None
    columns, others = verdicts.SHORT_COLUMNS, plan.EVERYWHERE[1:]
    places = {"all tasks": plan.TASKS, **{task: (task,) for task in plan.TASKS}}
    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(1, len(columns), figsize=(3.2 * len(columns), 4.2), sharey=True)
        for axis, (judge, budget) in zip(axes, columns, strict=True):
            for index, method in enumerate(others):
                for row, tasks in enumerate(places.values()):
                    found = verdicts.compare(study, method, "grpo", judge, budget, tasks)
                    if found.difference is None or found.difference.low is None or found.difference.high is None:
                        continue
                    height = row + (index - (len(others) - 1) / 2) * 0.2
                    color, title = COLORS[method], plan.METHODS[method].title
                    interval = (found.difference.low, found.difference.high)
                    axis.hlines(height, *interval, color=color, label=title if row == 0 else None)
                    filling = color if found.differs else "white"
                    axis.plot(found.difference.value, height, "o", color=color, markerfacecolor=filling)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.axhline(0.5, color="black", linewidth=0.4)
            axis.set(title=f"{judge}({budget}) - GRPO's", xlabel="difference in test accuracy")
            axis.grid(alpha=0.3, axis="x")
        axes[0].set_yticks(range(len(places)), places)
        axes[0].invert_yaxis()
        handles, labels = axes[0].get_legend_handles_labels()
        said = "dot filled: better or worse than GRPO"
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title=said)
        return _save(figure, folder / DIFFERENCES)


def long_curves(study: Study, folder: Path) -> Path | None:
    """The long runs, a line each: test accuracy, and mean response length over as many steps as lie between tests."""
    if not any(study.runs(method, steps=plan.LONG_STEPS) for method in plan.ALL_LONG):
        return None
    with matplotlib.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5))
        for method in plan.ALL_LONG:
            for number, log in enumerate(study.runs(method, steps=plan.LONG_STEPS)):
                line = {
                    "color": COLORS[method],
                    "linestyle": ("-", "--", ":")[number % 3],
                    "label": plan.METHODS[method].title if number == 0 else None,
                }
                left.plot(*zip(*sorted(accuracy(log, "test").items()), strict=True), **line)
                lengths = np.array([log.steps[step]["response_length/mean"] for step in range(1, log.cell.steps + 1)])
                means = lengths.reshape(-1, plan.LONG_TEST_EVERY).mean(axis=1)
                right.plot((np.arange(len(means)) + 1) * plan.LONG_TEST_EVERY, means, **line)
        left.set(title="test accuracy", xlabel="step", ylim=(0, 1.02))
        right.set(title="mean response length, tokens", xlabel="step")
        for axis in (left, right):
            axis.grid(alpha=0.3)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title="a line of each seed")
        return _save(figure, folder / LONG)


ALL = (curves, differences, long_curves)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path

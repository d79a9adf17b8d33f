"""Figures of the findings page."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from recipes.mini import plan
from recipes.mini.best import Study, accuracy

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

CURVES, LONG = "findings_curves.svg", "findings_long.svg"
COLORS = dict(zip(plan.MAIN, ("tab:blue", "tab:red", "tab:green", "tab:purple"), strict=True))
# The same figure is the same file.
_REPRODUCIBLE = {"svg.hashsalt": "srpo", "svg.fonttype": "path"}


def curves(study: Study, folder: Path) -> Path | None:
    """Test accuracy over steps by task and method: mean over seeds, band from the smallest to the largest seed."""
    tasks = [task for task in plan.TASKS if any(log.cell.task == task for m in plan.MAIN for log in study.runs(m))]
    if not tasks:
        return None
    with matplotlib.rc_context(_REPRODUCIBLE):
        figure, axes = plt.subplots(1, len(tasks), figsize=(3.2 * len(tasks), 3.0), sharey=True, squeeze=False)
        for axis, task in zip(axes[0], tasks, strict=True):
            for method in plan.MAIN:
                runs = [log for log in study.runs(method) if log.cell.task == task]
                if not runs:
                    continue
                steps = sorted(set.intersection(*(set(accuracy(log, "test")) for log in runs)))
                values = np.array([[accuracy(log, "test")[step] for step in steps] for log in runs])
                label = f"{plan.METHODS[method].title} ({len(runs)})"
                axis.plot(steps, values.mean(axis=0), color=COLORS[method], label=label)
                if len(runs) > 1:
                    axis.fill_between(
                        steps, values.min(axis=0), values.max(axis=0), color=COLORS[method], alpha=0.15, linewidth=0
                    )
            axis.set(title=task, xlabel="step", ylim=(0, 1))
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7, loc="lower right", title="seeds in brackets", title_fontsize=7)
        axes[0][0].set_ylabel("test accuracy")
        return _save(figure, folder / CURVES)


def long_curves(study: Study, folder: Path) -> Path | None:
    """The long runs, a line each: test accuracy, and mean response length over as many steps as lie between tests."""
    if not any(study.runs(method, steps=plan.LONG_STEPS) for method in plan.LONG):
        return None
    with matplotlib.rc_context(_REPRODUCIBLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2))
        for method in plan.LONG:
            for number, log in enumerate(study.runs(method, steps=plan.LONG_STEPS)):
                line = {
                    "color": COLORS[method],
                    "linestyle": ("-", "--", ":")[number % 3],
                    "label": f"{plan.METHODS[method].title}, seed {log.cell.seed}",
                }
                left.plot(*zip(*sorted(accuracy(log, "test").items()), strict=True), **line)
                lengths = np.array([log.steps[step]["response_length/mean"] for step in range(1, log.cell.steps + 1)])
                means = lengths.reshape(-1, plan.LONG_TEST_EVERY).mean(axis=1)
                right.plot((np.arange(len(means)) + 1) * plan.LONG_TEST_EVERY, means, **line)
        left.set(title="test accuracy", xlabel="step", ylim=(0, 1))
        right.set(title="mean response length, tokens", xlabel="step")
        for axis in (left, right):
            axis.grid(alpha=0.3)
        right.legend(fontsize=7)
        return _save(figure, folder / LONG)


def _save(figure: Figure, path: Path) -> Path:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path

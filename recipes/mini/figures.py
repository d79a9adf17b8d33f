"""Figures of the findings page."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from recipes.mini import plan
from recipes.mini.best import Study, accuracy

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CURVES = "findings_curves.svg"
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
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CURVES
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    return path

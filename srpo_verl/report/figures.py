"""The paper's figures from one's own runs. A figure whose metrics no run has is left out, never drawn empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from srpo_verl.report.loader import Run
from srpo_verl.report.tables import BUDGETS_H, find_collapse, reached_windows, seconds_per_step

ROLLING_STEPS = 5
"""Window of the rolling mean and of its ±1 standard deviation band, in points, as in Figure 3."""

SHORT_RUN_HOURS = 0.5
"""Below this the time axis is in minutes."""

COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
LINES = ("-", "--", ":", "-.")
SEED_LIGHTNESS = (0.0, 0.4, 0.2, 0.55)
"""How far towards white each further seed of an experiment is."""

TRAINING_ACCURACY = ("srpo/frac_correct", "critic/rewards/mean")


def rolling(values: np.ndarray, window: int = ROLLING_STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Trailing mean and standard deviation over up to `window` points, as long as `values`."""
    parts = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return np.array([part.mean() for part in parts]), np.array([part.std() for part in parts])


class _Styles:
    """A colour per experiment, a shade of it and a line style per seed, the same in every figure."""

    def __init__(self, runs: Sequence[Run]):
        experiments = list(dict.fromkeys(run.experiment for run in runs))
        self._of: dict[str, tuple[str, str]] = {}
        for run in runs:
            seed = sum(other.experiment == run.experiment for other in runs[: runs.index(run)])
            red, green, blue = to_rgb(COLORS[experiments.index(run.experiment) % len(COLORS)])
            whiter = SEED_LIGHTNESS[seed % len(SEED_LIGHTNESS)]
            color = to_hex((red + whiter * (1 - red), green + whiter * (1 - green), blue + whiter * (1 - blue)))
            self._of[run.label] = (color, LINES[seed % len(LINES)])

    def color(self, run: Run) -> str:
        return self._of[run.label][0]

    def line(self, run: Run) -> str:
        return self._of[run.label][1]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    lines = -(-count // columns)
    width = 7.6 if count == 1 else 5.2 * columns
    figure = Figure(figsize=(width, 4.3 * lines), layout="constrained")
    axes = [figure.add_subplot(lines, columns, index + 1) for index in range(count)]
    for axis in axes:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axis: Axes, title: str | None = None) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8, title=title, title_fontsize=8)


def _smooth(axis: Axes, run: Run, styles: _Styles, x: np.ndarray, y: np.ndarray) -> None:
    """The measured values faintly, their rolling mean over them."""
    axis.plot(x, y, color=styles.color(run), linewidth=0.8, alpha=0.3)
    marker = "o" if len(x) < 2 * ROLLING_STEPS else ""
    axis.plot(
        x, rolling(y)[0], color=styles.color(run), linestyle=styles.line(run), marker=marker, ms=3, label=run.label
    )


def _benchmarks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(benchmark for run in runs for benchmark in run.validation()))


def _percent_axis(axis: Axes, label: str) -> None:
    axis.set_ylabel(label)
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, -2.0), min(high, 102.0))


def accuracy_over_steps(runs: Sequence[Run]) -> Figure | str:
    """Training accuracy, and beside it one panel of validation points per benchmark."""
    training = [run for run in runs if len(run.series(*TRAINING_ACCURACY)[0])]
    benchmarks = _benchmarks(runs)
    if not training and not benchmarks:
        return f"{' or '.join(TRAINING_ACCURACY)} or val-core/*"
    styles = _Styles(runs)
    figure, axes = _panels(bool(training) + len(benchmarks))
    if training:
        axis = axes.pop(0)
        for run in training:
            steps, values = run.series(*TRAINING_ACCURACY)
            _smooth(axis, run, styles, steps, 100 * values)
        axis.set_title(f"training ({ROLLING_STEPS}-step rolling mean)", fontsize=10)
        axis.set_xlabel("training step")
        _percent_axis(axis, "correct rollouts (%)")
        _legend(axis)
    for axis, benchmark in zip(axes, benchmarks, strict=True):
        for run in runs:
            steps, values = run.validation().get(benchmark, (np.array([]), np.array([])))
            if len(steps):
                axis.plot(
                    steps, 100 * values, styles.line(run), color=styles.color(run), marker="o", ms=3.5, label=run.label
                )
        axis.set_title(f"validation: {benchmark}", fontsize=10)
        axis.set_xlabel("training step")
        _percent_axis(axis, "accuracy (%)")
        _legend(axis)
    return figure


def accuracy_over_hours(runs: Sequence[Run]) -> Figure | str:
    """Figure 3: accuracy over training time. Training accuracy where no run was validated at two steps or more."""
    timed = [run for run in runs if np.isfinite(run.total_hours)]
    if not timed:
        return "timing_s/step or srpo/hours"
    curves = [
        (benchmark, run, *run.validation()[benchmark])
        for benchmark in _benchmarks(timed)
        for run in timed
        if benchmark in run.validation()
    ]
    curves = [curve for curve in curves if len(curve[2]) > 1]
    if not curves:
        curves = [("training", run, *run.series(*TRAINING_ACCURACY)) for run in timed]
        curves = [curve for curve in curves if len(curve[2])]
    if not curves:
        return f"val-core/* or {' or '.join(TRAINING_ACCURACY)}"
    styles = _Styles(runs)
    titles = list(dict.fromkeys(curve[0] for curve in curves))
    longest = max(run.total_hours for run in timed)
    scale, unit = (60.0, "minutes") if longest < SHORT_RUN_HOURS else (1.0, "hours")
    figure, axes = _panels(len(titles))
    for axis, title in zip(axes, titles, strict=True):
        for of, run, steps, values in curves:
            if of != title:
                continue
            time = scale * run.hours(steps)
            mean, std = rolling(100 * values)
            color = styles.color(run)
            axis.fill_between(time, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
            axis.plot(time, 100 * values, "o", color=color, markersize=2.2, alpha=0.35)
            axis.plot(time, mean, styles.line(run), color=color, label=run.label)
        for budget in BUDGETS_H:
            if budget < longest:
                axis.axvline(scale * budget, color="#999999", linewidth=0.8, linestyle=(0, (2, 3)))
        axis.set_title(title if title == "training" else f"validation: {title}", fontsize=10)
        axis.set_xlabel(f"training time ({unit})")
        axis.set_xlim(left=0)
        _percent_axis(axis, "accuracy (%)")
        _legend(axis, f"{ROLLING_STEPS}-point rolling mean ± 1 std")
    return figure


def routing_shares(runs: Sequence[Run]) -> Figure | str:
    """Figure 5: share of samples per branch, and share with teacher information."""
    shares = {
        "srpo/frac_sdpo": "routed to SDPO",
        "srpo/frac_grpo": "routed to GRPO",
        "srpo/frac_teacher_available": "with teacher information",
    }
    return _metric_panels(runs, shares, "share of samples (%)", factor=100.0)


def response_length(runs: Sequence[Run]) -> Figure | str:
    """Figure 4a, with the step from which on a run collapsed."""
    figure = _metric_panels(runs, {"response_length/mean": ""}, "mean response length (tokens)")
    if isinstance(figure, str):
        return figure
    axis, styles = figure.axes[0], _Styles(runs)
    for run in runs:
        collapse = find_collapse(run)
        if collapse is not None:
            label = f"{run.label}: late collapse from step {collapse.step}"
            axis.axvline(collapse.step, color=styles.color(run), linestyle=(0, (1, 2)), linewidth=1.4, label=label)
    axis.set_ylim(bottom=0)
    _legend(axis)
    return figure


def step_seconds(runs: Sequence[Run]) -> Figure | str:
    """Figure 4b: seconds per step over training, and their mean in the windows of Table 1's budgets."""
    timed = [run for run in runs if len(run.step_seconds()[0])]
    if not timed:
        return "timing_s/step"
    styles = _Styles(runs)
    figure, (curve, bars) = _panels(2)
    for run in timed:
        _smooth(curve, run, styles, *run.step_seconds())
    curve.set_title(f"each step ({ROLLING_STEPS}-step rolling mean)", fontsize=10)
    curve.set_xlabel("training step")
    curve.set_ylabel("seconds per step")
    curve.set_ylim(bottom=0)
    _legend(curve)
    windows = [budget for budget in BUDGETS_H if any(budget in reached_windows(run) for run in timed)]
    width = 0.8 / len(timed)
    for index, run in enumerate(timed):
        means = seconds_per_step(run)
        reached = [budget for budget in windows if budget in reached_windows(run)]
        places = [windows.index(budget) + (index - (len(timed) - 1) / 2) * width for budget in reached]
        heights = [means[f"s_per_step_{budget}h"] for budget in reached]
        drawn = bars.bar(places, heights, 0.92 * width, color=styles.color(run), label=run.label, alpha=0.85)
        bars.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    bars.set_xticks(range(len(windows)), [f"first {budget} h" for budget in windows])
    if len(windows) == 1:
        bars.set_xlim(-1, 1)
    bars.margins(y=0.12)
    bars.grid(False, axis="x")
    bars.set_title("mean in each window", fontsize=10)
    bars.set_xlabel("window of training time from the start")
    bars.set_ylabel("seconds per step")
    return figure


def teacher(runs: Sequence[Run]) -> Figure | str:
    """Figure 1(c): how sure the self-teacher is, and how far the student is from it."""
    metrics = {
        "srpo/teacher_entropy_mean": "entropy of the self-teacher",
        "srpo/student_teacher_divergence": "divergence between student and self-teacher",
    }
    return _metric_panels(runs, metrics, "nats per distilled token")


def _metric_panels(
    runs: Sequence[Run],
    metrics: dict[str, str],
    y_label: str,
    factor: float = 1.0,
) -> Figure | str:
    """One panel per metric over training steps, or the names of the metrics that no run has."""
    absent = [name for name in metrics if not any(len(run.series(name)[0]) for run in runs)]
    if absent:
        return " and ".join(absent)
    styles = _Styles(runs)
    figure, axes = _panels(len(metrics))
    for axis, (name, title) in zip(axes, metrics.items(), strict=True):
        for run in runs:
            steps, values = run.series(name)
            if len(steps):
                _smooth(axis, run, styles, steps, factor * values)
        if title:
            axis.set_title(title, fontsize=10)
        axis.set_xlabel("training step")
        if factor == 100.0:
            axis.set_ylim(-2, 102)
        axis.set_ylabel(y_label)
        _legend(axis, f"{ROLLING_STEPS}-step rolling mean")
    return figure


FIGURES: dict[str, tuple[Callable[[Sequence[Run]], Figure | str], str]] = {
    "accuracy_over_steps.png": (accuracy_over_steps, "Accuracy over training steps"),
    "accuracy_over_hours.png": (accuracy_over_hours, "Accuracy over wall-clock time (Figure 3)"),
    "routing_shares.png": (routing_shares, "Share of samples per branch (Figure 5)"),
    "response_length.png": (response_length, "Response length over training (Figure 4a)"),
    "step_seconds.png": (step_seconds, "Seconds per training step (Figure 4b)"),
    "teacher.png": (teacher, "Teacher entropy and distance between student and teacher (Figure 1c)"),
}
"""File name: function and caption. A function returns the figure, or the metrics for want of which there is none."""


def write_figures(runs: Sequence[Run], out: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Draw into `out`; returns captions of the written files, and of each left-out one what it lacks.

    A left-out figure of an earlier report in the same directory is removed: it would show other runs.
    """
    written, left_out = {}, {}
    for name, (draw, caption) in FIGURES.items():
        figure = draw(runs)
        if isinstance(figure, str):
            left_out[name] = figure
            (out / name).unlink(missing_ok=True)
        else:
            figure.savefig(out / name, dpi=140)
            written[name] = caption
    return written, left_out

"""The paper's figures from one's own runs. A figure whose metrics no run has is left out, never drawn empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from srpo_verl.config.methods import title_of
from srpo_verl.report.charts import Bars, Line, Panel
from srpo_verl.report.groups import ROLLING_STEPS, Curve, Group
from srpo_verl.report.paper import BUDGETS_H
from srpo_verl.report.run import Run
from srpo_verl.report.tables import used_up

SHORT_RUN_HOURS = 0.5
"""Below this the time axis is in minutes."""

TRAINING_ACCURACY = ("srpo/frac_correct", "critic/rewards/mean", "critic/score/mean")

PARTS = {
    "sampling": "timing_s/gen",
    "old log-probs": "timing_s/old_log_prob",
    "teacher": "timing_s/srpo_teacher",
    "update": "timing_s/update_actor",
}
"""What a training step spends its time on; veRL's update holds the teacher's pass."""


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, a row of them per task, and the labels in them with their colours."""

    name: str
    title: str
    caption: str
    rows: list[tuple[str, list[Panel]]]
    legend: list[tuple[str, int]]

    @property
    def has_bands(self) -> bool:
        return any(line.curve.seeds > 1 for _, panels in self.rows for panel in panels for line in panel.lines)


class Colors:
    """A colour per label, the same in every figure: by method, so that SRPO is blue in every report."""

    FIXED = ("srpo", "grpo", "sdpo", "srpo_no_dw", "advantage_mix", "srpo_handover")
    COUNT = 12

    def __init__(self, groups: Sequence[Group]):
        self._of: dict[str, int] = {}
        fixed = [title_of(name) for name in self.FIXED]
        for group in groups:
            if group.label in self._of:
                continue
            free = [color for color in range(self.COUNT) if color not in self._of.values()]
            own = fixed.index(group.method) if group.method in fixed else None
            others = [color for color in free if color >= len(fixed)] or free or [len(self._of) % self.COUNT]
            self._of[group.label] = own if own is not None and own in free else others[0]

    def __getitem__(self, label: str) -> int:
        return self._of[label]


Draw = Callable[[Sequence[Group], Colors], "list[Panel] | str"]
"""Groups of one task -> panels, or what there would have to be for them."""


def _lines(groups: Sequence[Group], colors: Colors, *metrics: str, factor: float = 1.0) -> list[Line]:
    """The first of the metrics that a group has, over training steps."""
    curves = [(group, group.over_steps(*metrics, factor=factor)) for group in groups]
    return [Line(group.label, colors[group.label], curve) for group, curve in curves if curve is not None]


def _metric_panels(
    groups: Sequence[Group],
    colors: Colors,
    metrics: dict[str, str],
    y_label: str,
    *,
    factor: float = 1.0,
    whole: bool = False,
    from_zero: bool = False,
) -> list[Panel] | str:
    """A panel per metric that some run has."""
    drawn = {name: _lines(groups, colors, name, factor=factor) for name in metrics}
    panels = [
        Panel(metrics[name], "training step", y_label, lines, whole=whole, from_zero=from_zero)
        for name, lines in drawn.items()
        if lines
    ]
    return panels or " and ".join(metrics)


def _joined(*parts: list[Panel] | str) -> list[Panel] | str:
    panels = [panel for part in parts if not isinstance(part, str) for panel in part]
    return panels or " or ".join(part for part in parts if isinstance(part, str))


def training_accuracy(groups: Sequence[Group], colors: Colors) -> list[Panel] | str:
    lines = _lines(groups, colors, *TRAINING_ACCURACY, factor=100.0)
    panel = Panel("training prompts", "training step", "correct rollouts (%)", lines, percent=True)
    return [panel] if lines else " or ".join(TRAINING_ACCURACY)


def _validation_points(benchmark: str) -> Callable[[Run], tuple[np.ndarray, np.ndarray]]:
    def points(run: Run) -> tuple[np.ndarray, np.ndarray]:
        curve = run.validation().get(benchmark)
        return (np.array([], dtype=int), np.array([])) if curve is None else (curve.steps, curve.values)

    return points


def _validation_panels(groups: Sequence[Group], colors: Colors, *, in_hours: bool) -> list[Panel] | str:
    """A panel per benchmark, over steps or over training time."""
    runs = [run for group in groups for run in group.runs]
    minutes = in_hours and max((run.total_hours for run in runs if run.total_hours > 0), default=0) < SHORT_RUN_HOURS
    x_label = f"training time ({'minutes' if minutes else 'hours'})" if in_hours else "training step"
    benchmarks = list(dict.fromkeys(name for run in runs for name in run.validation()))
    panels = []
    for benchmark in benchmarks:
        lines = []
        for group in groups:
            curve = group.curve(_validation_points(benchmark), factor=100.0, in_hours=in_hours)
            if curve is None or not np.isfinite(curve.x).all() or len(curve.x) < 2:
                continue
            lines.append(Line(group.label, colors[group.label], _in_minutes(curve) if minutes else curve, True))
        title = "held-out prompts" if len(benchmarks) == 1 else benchmark
        if lines:
            panels.append(Panel(title, x_label, "accuracy (%)", lines, percent=True))
    return panels or ("two validations (val-core/*) with srpo/hours or timing_s/step" if in_hours else "val-core/*")


def _in_minutes(curve: Curve) -> Curve:
    return replace(curve, x=60.0 * curve.x, lines=tuple((60.0 * x, y) for x, y in curve.lines))


def learning_curves(groups: Sequence[Group], colors: Colors) -> list[Panel] | str:
    """Figure 3, over steps as well, and the training prompts beside it."""
    return _joined(
        training_accuracy(groups, colors),
        _validation_panels(groups, colors, in_hours=False),
        _validation_panels(groups, colors, in_hours=True),
    )


def sdpo_variants(groups: Sequence[Group], colors: Colors) -> list[Panel] | str:
    wanted = ("sdpo", "sdpo_correct_only", "sdpo_failed_only")
    present = [group for group in groups if group.method in map(title_of, wanted)]
    if len({group.method for group in present}) < 2:
        return f"runs of at least two of {', '.join(wanted)}"
    return _joined(
        training_accuracy(present, colors),
        _validation_panels(present, colors, in_hours=False),
    )


def teacher(groups: Sequence[Group], colors: Colors) -> list[Panel] | str:
    metrics = {
        "srpo/student_teacher_divergence": "divergence of student and teacher",
        "srpo/teacher_entropy_mean": "entropy of the teacher",
    }
    return _metric_panels(groups, colors, metrics, "nats per distilled token", from_zero=True)


def routing_shares(groups: Sequence[Group], colors: Colors) -> list[Panel] | str:
    shares = {
        "srpo/frac_sdpo": "distilled",
        "srpo/frac_grpo": "take the policy gradient",
        "srpo/frac_teacher_available": "with teacher information",
    }
    return _metric_panels(groups, colors, shares, "rollouts (%)", factor=100.0, whole=True)


def length_and_cost(groups: Sequence[Group], colors: Colors) -> list[Panel] | str:
    """Figures 4a and 4b, and what a step spends its time on."""
    return _joined(
        _metric_panels(groups, colors, {"response_length/mean": "response length"}, "tokens", from_zero=True),
        _step_seconds(groups, colors),
    )


def _timed(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if any(len(run.step_seconds()[0]) for run in group.runs)]


def _step_seconds(groups: Sequence[Group], colors: Colors) -> list[Panel] | str:
    """A step's mean from the start to the end of every budget that was reached, and of the whole run."""
    timed = _timed(groups)
    if not timed:
        return "timing_s/step"
    runs = [run for group in timed for run in group.runs]
    windows: list[int | None] = [hours for hours in BUDGETS_H if any(used_up(run, hours) for run in runs)]
    windows.append(None)
    bars = []
    for group in timed:
        values = [[seconds_within(run, hours) for run in group.runs] for hours in windows]
        kept = [[value for value in column if value is not None] for column in values]
        means = [float(np.mean(column)) if column else None for column in kept]
        spreads = [float(np.std(column, ddof=1)) if len(column) > 1 else 0.0 for column in kept]
        bars.append(Bars(group.label, colors[group.label], means, spreads))
    names = ["whole run" if hours is None else f"first {hours} h" for hours in windows]
    return [Panel("a training step", "training time", "seconds", bars=bars, categories=names)]


def seconds_within(run: Run, hours: int | None) -> float | None:
    """Mean seconds of a step within a budget that the run used up; None: of the whole run."""
    steps, seconds = run.step_seconds()
    if not len(steps) or (hours is not None and not used_up(run, hours)):
        return None
    within = seconds if hours is None else seconds[run.hours(steps) <= hours]
    return float(np.mean(within)) if len(within) else None


def step_parts(groups: Sequence[Group], colors: Colors) -> list[Panel] | str:
    """Where the time of a step goes: medians, so that the first step's start-up does not count."""
    timed = _timed(groups)
    if not timed:
        return "timing_s/step"
    parts = {group.label: _parts(group) for group in timed}
    bars = [
        Bars(name, len(Colors.FIXED) + index, [parts[group.label][name] for group in timed])
        for index, name in enumerate([*PARTS, "rest"])
        if any(parts[group.label][name] > 0 for group in timed)
    ]
    names = [group.label for group in timed]
    return [Panel("a training step", "", "seconds (median)", bars=bars, categories=names, stacked=True)]


def _parts(group: Group) -> dict[str, float]:
    def median(name: str) -> float:
        values = [float(np.median(run.series(name)[1])) for run in group.runs if len(run.series(name)[1])]
        return float(np.mean(values)) if values else 0.0

    parts = {name: median(metric) for name, metric in PARTS.items()}
    parts["update"] = max(0.0, parts["update"] - parts["teacher"])
    whole = float(np.mean([np.median(run.step_seconds()[1]) for run in group.runs if len(run.step_seconds()[1])]))
    parts["rest"] = max(0.0, whole - sum(parts.values()))
    return parts


_SMOOTHED = f"Thick: rolling mean of {ROLLING_STEPS} steps, centred."

FIGURES: dict[str, tuple[Draw, str, str]] = {
    "learning_curves": (
        learning_curves,
        "Learning curves (Figure 3)",
        f"Training prompts: {_SMOOTHED[0].lower()}{_SMOOTHED[1:]} Held-out prompts: a point per validation. Training "
        "time holds no validations, checkpoints or start-up.",
    ),
    "sdpo_variants": (sdpo_variants, "SDPO on all, on correct and on failed rollouts (Figure 1b)", _SMOOTHED),
    "teacher": (teacher, "Gap of teacher and student, and the teacher's entropy (Figure 1c)", _SMOOTHED),
    "routing_shares": (
        routing_shares,
        "Share of rollouts per branch (Figure 5)",
        f"By its routing a rollout may be in both branches. {_SMOOTHED}",
    ),
    "length_and_cost": (
        length_and_cost,
        "Response length and seconds per step (Figure 4)",
        f"{_SMOOTHED} Bars: means; whiskers: one standard deviation over seeds.",
    ),
    "step_parts": (step_parts, "Where a step's time goes", "Medians over the steps, means over the seeds."),
}
"""Name: what draws the panels of a task, title, caption."""


def draw_figures(groups: Sequence[Group]) -> tuple[list[Figure], dict[str, str]]:
    """The figures, and of each one that is left out what it lacks, by its title."""
    colors, figures, left_out = Colors(groups), [], {}
    tasks = list(dict.fromkeys(group.task for group in groups))
    for name, (draw, title, caption) in FIGURES.items():
        found = {task: draw([group for group in groups if group.task == task], colors) for task in tasks}
        rows = [(task, panels) for task, panels in found.items() if not isinstance(panels, str)]
        if not rows:
            left_out[title] = str(found[tasks[0]])
            continue
        legend: dict[tuple[str, int], None] = {}
        for task, panels in rows:
            for panel in panels:
                panel.task = task
                legend |= {(line.label, line.color): None for line in panel.lines}
                legend |= {(bars.label, bars.color): None for bars in panel.bars}
        if len(rows) > 1 and all(len(panels) == 1 for _, panels in rows):
            for task, (panel,) in rows:
                panel.title, panel.task = task or panel.title, ""
            rows = [("", [panel for _, (panel,) in rows])]
        figures.append(Figure(name, title, caption, rows, list(legend)))
    return figures, left_out

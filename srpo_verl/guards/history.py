"""What the guards read of a run: some of its metrics by step, and their level early and lately."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate, pairwise
from statistics import median
from typing import Any

from srpo_verl.budget import mean_accuracy

EARLY = 10
"""A run's own reference: the median of this many first values."""

RECENT = 3
"""What it is compared with: the median of this many last values, so that a single step decides nothing."""

BEFORE, AFTER = 20, 10
"""A slow fall: the mean of the last AFTER values against the best mean of BEFORE that the run has had."""

VALIDATION = "validation accuracy"
"""The series of validations; no metric's name."""

WATCHED = frozenset(
    {
        "actor/entropy",
        "actor/grad_norm",
        "actor/lr",
        "critic/score/max",
        "critic/score/min",
        "srpo/frac_at_length_limit",
        "response_length/mean",
        "srpo/accuracy",
        "srpo/distillation_coefficient",
        "srpo/frac_all_correct_groups",
        "srpo/frac_all_failed_groups",
        "srpo/frac_correct",
        "srpo/frac_credit",
        "srpo/frac_false_success",
        "srpo/frac_format_ok",
        "srpo/frac_grpo",
        "srpo/frac_sdpo",
        "srpo/frac_shown_feedback",
        "srpo/frac_teacher_available",
        "srpo/nonfinite_steps",
        "srpo/response_compression",
        "srpo/teacher_distance",
        "srpo/teacher_forward_tokens",
    }
)


class Series:
    """Values of one metric, oldest first, and the training steps they belong to."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []

    def __len__(self) -> int:
        return len(self.steps)

    def early(self) -> float:
        """Median of the first values."""
        return median(self.values[:EARLY])

    def recent(self) -> float:
        """Median of the last values."""
        return median(self.values[-RECENT:])

    @property
    def has_trend(self) -> bool:
        """Whether the last values are others than the first."""
        return len(self) >= EARLY + RECENT

    def noise(self) -> float:
        """Robust standard deviation of a median of RECENT values, from the differences of neighbours.

        Differences leave a trend out. 1.4826 makes a median deviation a standard deviation, sqrt(2) undoes the
        difference, 1.2533 is the loss of a median against a mean (normal noise).
        """
        return self._deviation(4 * EARLY) * 1.2533 / math.sqrt(RECENT)

    def _deviation(self, count: int) -> float:
        """Robust standard deviation of one of the last `count` values."""
        steps = [abs(one - other) for one, other in pairwise(self.values[-count:])]
        return 1.4826 * median(steps) / math.sqrt(2) if steps else math.inf

    def best_recent(self) -> float:
        """The largest `recent` that the series has ever had; the whole series, where it is shorter than one."""
        ends = range(min(RECENT, len(self)), len(self) + 1)
        return max(median(self.values[max(0, end - RECENT) : end]) for end in ends)

    def slow_fall(self) -> tuple[float, float, float] | None:
        """Best mean of BEFORE values, mean of the last AFTER, standard error of their difference; None: too few."""
        if len(self) < BEFORE + AFTER:
            return None
        sums = [0.0, *accumulate(self.values)]
        best = max(end - start for start, end in zip(sums, sums[BEFORE:], strict=False)) / BEFORE
        error = self._deviation(100) * math.sqrt(1 / BEFORE + 1 / AFTER)
        return best, (sums[-1] - sums[-1 - AFTER]) / AFTER, error

    def streak(self, value: float) -> int:
        """How many last values equal `value`."""
        count = 0
        while count < len(self) and self.values[-1 - count] == value:
            count += 1
        return count


class History:
    """The watched metrics of a run, filled step by step."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def __getitem__(self, name: str) -> Series:
        """The series of a metric, empty where it was never logged."""
        return self._series.get(name) or Series()

    def add(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Add one step's metrics, or what a validation logs by itself; return whether the step trained.

        What is not a finite number was not measured. A step at or before the last one is trained again after a
        resumption: what followed it is forgotten.
        """
        values = {name: metrics[name] for name in WATCHED & metrics.keys()}
        accuracy = mean_accuracy(metrics)
        if accuracy is not None:
            values[VALIDATION] = accuracy
        trained = any(name in WATCHED for name in values)
        for name, series in self._series.items():
            if trained or name in values:
                first = bisect_left(series.steps, step)
                del series.steps[first:], series.values[first:]
        for name, value in values.items():
            if _is_finite(value):
                series = self._series.setdefault(name, Series())
                series.steps.append(step)
                series.values.append(float(value))
        return trained

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: [series.steps, series.values] for name, series in self._series.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        """Undo `to_dict`. Raises ValueError or TypeError for what it cannot have written."""
        history = cls()
        for name, (steps, numbers) in values.items():
            series = history._series[name] = Series()
            series.steps, series.values = [int(step) for step in steps], [float(number) for number in numbers]
            if len(series.steps) != len(series.values):
                raise ValueError(f"{name}: {len(series.steps)} steps and {len(series.values)} values")
        return history


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False

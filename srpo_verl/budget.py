"""Training time, best accuracy within wall-clock budgets, and which step of a run is the last that fits. No veRL here.

Training time is the sum of what the training steps took: rollouts, rewards, teacher pass, update and the transfer of
the weights to the rollout engine. Validations and the writing of checkpoints are not in it, so that a budget means the
same however often a run is validated or saved; nor is what lies before the first step (starting workers, loading).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srpo_verl.whole_file import write_whole

FILE_NAME = "srpo_budget.json"
"""Beside veRL's `data.pt` in global_step_N."""

HOURS = "srpo/hours"
"""Metric: training time when the weights of the step existed."""

SECONDS_PER_HOUR = 3600.0

RECENT_STEPS = 5
"""The next step is expected to take as long as the longest of this many last ones."""

VALIDATION = re.compile(r"val-core/.+/(acc|reward)/mean@\d+")
"""veRL's name for the mean over the validation rollouts of a data source; of every source it logs exactly one."""


def best_accuracy_name(budget_hours: float) -> str:
    """Name of the metric of one budget: 1.0 -> srpo/best_accuracy_1h. Different budgets have different names."""
    short = f"{budget_hours:g}"
    return f"srpo/best_accuracy_{short if float(short) == budget_hours else repr(budget_hours)}h"


def mean_accuracy(metrics: Mapping[str, Any]) -> float | None:
    """Accuracy of one validation, averaged over the data sources; None where nothing was measured."""
    values = [float(value) for name, value in metrics.items() if VALIDATION.fullmatch(name)]
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else None


@dataclass
class TrainingRecord:
    """How long a run has trained and what its validations gave. Saved with every checkpoint."""

    seconds: float = 0.0
    # Of the last steps, oldest first.
    recent_seconds: list[float] = field(default_factory=list)
    # Training step -> training time of its weights in hours, accuracy.
    validations: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def hours(self) -> float:
        return self.seconds / SECONDS_PER_HOUR

    def add_step(self, seconds: float) -> None:
        """Count one training step."""
        self.seconds += seconds
        self.recent_seconds = [*self.recent_seconds, seconds][-RECENT_STEPS:]

    def add_validation(self, step: int, accuracy: float) -> None:
        """Note the accuracy of the present weights, those of `step`.

        A resumed run may validate the weights of its checkpoint again. That is a second measurement of the same
        thing, so it replaces the first: the better of the two would be too good.
        """
        self.validations[step] = (self.hours, accuracy)

    def best_accuracy(self, budget_hours: float) -> float | None:
        """Best accuracy of weights that existed within the budget; None before the first such validation."""
        return max((accuracy for hours, accuracy in self.validations.values() if hours <= budget_hours), default=None)

    def metrics(self, budgets_hours: Sequence[float]) -> dict[str, float]:
        """Training time, and the best accuracy of every budget that has one, whether or not it has passed."""
        best = {best_accuracy_name(budget): self.best_accuracy(budget) for budget in budgets_hours}
        return {HOURS: self.hours, **{name: value for name, value in best.items() if value is not None}}

    def steps_that_fit(self, stop_at_hours: float) -> int | None:
        """How many more steps are expected to end within `stop_at_hours`; None before the first step ever."""
        left = stop_at_hours * SECONDS_PER_HOUR - self.seconds
        if left <= 0:
            return 0
        longest = max(self.recent_seconds, default=0.0)
        return math.floor(left / longest) if longest > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "seconds": self.seconds,
            "recent_seconds": self.recent_seconds,
            "validations": [[step, hours, accuracy] for step, (hours, accuracy) in self.validations.items()],
        }

    @classmethod
    def from_dict(cls, values: Any) -> TrainingRecord:
        """Undo `to_dict`. Raises ValueError for anything it cannot have written."""
        try:
            record = cls(
                seconds=float(values["seconds"]),
                recent_seconds=[float(seconds) for seconds in values["recent_seconds"]],
                validations={int(step): (float(hours), float(best)) for step, hours, best in values["validations"]},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no record of a run: {error!r}") from error
        numbers = [record.seconds, *record.recent_seconds, *(hours for hours, _ in record.validations.values())]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError("no record of a run: times have to be finite and at least 0")
        return record

    def save(self, folder: str | Path) -> None:
        """Write the record into a checkpoint's folder, whole or not at all."""
        write_whole(Path(folder) / FILE_NAME, json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TrainingRecord:
        """Read what `save` wrote. Raises FileNotFoundError or ValueError, with what to do about it."""
        path = Path(folder) / FILE_NAME
        remedy = (
            "srpo.budget cannot go on counting. Resume without it "
            "(srpo.budget.hours=[] srpo.budget.stop_at_hours=null), or from another checkpoint"
        )
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: this checkpoint does not say how long its run had trained (an earlier release or another "
                f"trainer wrote it), so {remedy}"
            )
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {remedy}") from error

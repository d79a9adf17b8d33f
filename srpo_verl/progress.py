"""A line a step for a person: where a run is, how it does, when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from srpo_verl.budget import mean_accuracy

PARTS = (
    ("srpo/frac_correct", "correct {:4.0%}"),
    ("srpo/frac_sdpo", "distilled {:4.0%}"),
    ("response_length/mean", "response {:4.0f} tokens"),
    ("srpo/loss", "loss {:8.4f}"),
    ("timing_s/step", "{:5.1f} s/step"),
)
"""Metric, and how it is shown; what a step has not is left out."""


def clock_time(seconds: float) -> str:
    """75.3 -> 0:01:15."""
    return str(timedelta(seconds=round(seconds)))


class Progress:
    """Lines for the console, each with the time since this was made.

    Args:
        now: a clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now, self.started = now, now()
        self.first_step: tuple[int, float] | None = None

    def phase(self, what: str) -> str:
        """Something has begun."""
        return f"{clock_time(self.now() - self.started)}  {what}"

    def begin(self, step: int) -> None:
        """Steps are counted from here: `step` is the first one to come."""
        self.first_step = (step, self.now())

    def step(self, step: int, last: int, metrics: Mapping[str, Any], seconds_left: float | None = None) -> str:
        """A step has ended, its validation included.

        Args:
            step, last: its number, and that of the last one.
            metrics: of the step, by veRL's names.
            seconds_left: of training, where a budget may end the run before the last step.
        """
        parts = [template.format(metrics[name]) for name, template in PARTS if name in metrics]
        accuracy = mean_accuracy(metrics)
        parts += [] if accuracy is None else [f"ACCURACY {accuracy:.1%}"]
        ends = ""
        if self.first_step is not None and step < last:
            first, began = self.first_step
            left = (last - step) * (self.now() - began) / (step - first + 1)
            ends = f", ends in {clock_time(left if seconds_left is None else min(left, seconds_left))}"
        elapsed = clock_time(self.now() - self.started)
        return f"{elapsed}  step {step:>{len(str(last))}}/{last}  {'  '.join(parts)}{ends}"

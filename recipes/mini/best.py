"""Choosing each method's learning rate from the grid's logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from recipes.mini.logs import Log
from recipes.mini.verifier import TEST

ACCURACY = "val-core/{source}/acc/mean@1"
"""veRL's name of the accuracy on the questions of one data source."""


def accuracy(log: Log, split: str = "validation") -> dict[int, float]:
    """Accuracy by step on the validation or the test questions."""
    source = f"mini/{log.cell.task}" + (TEST if split == "test" else "")
    name = ACCURACY.format(source=source)
    return {step: metrics[name] for step, metrics in log.steps.items() if name in metrics}


def choose_rates(logs: Iterable[Log]) -> dict[str, float]:
    """By method, the learning rate of the best mean validation accuracy over all checkpoints of the grid's runs.

    The mean over the whole run and over seeds, so that being early counts, and late collapse does; equal means: the
    smaller rate.
    """
    scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for log in logs:
        if log.cell.part == "grid":
            curve = accuracy(log)
            scores[log.cell.method][log.cell.learning_rate].append(float(np.mean(list(curve.values()))))
    return {
        method: max(sorted(rates), key=lambda rate: float(np.mean(rates[rate]))) for method, rates in scores.items()
    }

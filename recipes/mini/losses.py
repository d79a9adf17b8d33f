"""When a run had lost ten points of accuracy, and whether the guards had said so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from recipes.mini.best import accuracy
from recipes.mini.logs import Log
from recipes.mini.plan import METHODS
from srpo_verl.guards import Settings, review

LOST = 0.10
"""Loss of accuracy, against its best so far, that is called a collapse."""
SOON = 10
"""Steps; the study evaluates that often."""
TOLD = ("warned before", f"at most {SOON} steps later", "later", "never", "lost nothing", "lost nothing, but an alarm")


def first_loss(curve: Sequence[tuple[int, float]]) -> int | None:
    """First of two accuracies in a row that are ten points below the best before them; one alone may be chance."""
    best, low = 0.0, None
    for step, value in curve:
        if value <= best - LOST and low is not None:
            return low
        low = step if value <= best - LOST else None
        best = max(best, value)
    return None


def told(lost: int | None, raised: int | None) -> str:
    """What became of a run, in the words of TOLD: the step of the loss, and of the first alarm."""
    if lost is None:
        return TOLD[4] if raised is None else TOLD[5]
    if raised is None:
        return TOLD[3]
    return TOLD[0] if raised <= lost else TOLD[1] if raised <= lost + SOON else TOLD[2]


def told_by_method(runs: Iterable[Log]) -> dict[str, Counter[str]]:
    """By method, how many runs in the words of TOLD.

    Lost by the mean of validation and test accuracy, since no choice is made by it.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for log in runs:
        test = accuracy(log, "test")
        curve = [(step, (value + test[step]) / 2) for step, value in accuracy(log).items() if step in test]
        # Every teacher of the study is an average. What a log alone does not say of the rest stays unknown.
        settings = Settings(teacher_kind="ema" if METHODS[log.cell.method].has_teacher else None)
        raised = [alarm.step for alarm in review(sorted(log.steps.items()), settings)]
        counts[log.cell.method][told(first_loss(curve), min(raised, default=None))] += 1
    return counts

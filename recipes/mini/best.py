"""From logs to scores: accuracy curves, the best and the last checkpoint within a budget, and the learning rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.mini import plan
from recipes.mini.logs import Log, folder_of, read_all
from recipes.mini.verifier import TEST

ACCURACY = "val-core/{source}/acc/mean@1"
"""veRL's name of the accuracy on the questions of one data source."""


def accuracy(log: Log, split: str = "validation") -> dict[int, float]:
    """Accuracy by step on the validation or the test questions."""
    source = f"mini/{log.cell.task}" + (TEST if split == "test" else "")
    name = ACCURACY.format(source=source)
    return {step: metrics[name] for step, metrics in log.steps.items() if name in metrics}


def best_within(log: Log, budget: int) -> float:
    """Test accuracy of the checkpoint with the best validation accuracy up to a step, the earlier of equals."""
    chosen = {step: value for step, value in accuracy(log).items() if step <= budget}
    return accuracy(log, "test")[max(chosen, key=lambda step: (chosen[step], -step))]


def last_within(log: Log, budget: int) -> float:
    """Test accuracy of the last evaluation up to a step."""
    curve = accuracy(log, "test")
    return curve[max(step for step in curve if step <= budget)]


def low_since(log: Log, loss: float) -> int | None:
    """First evaluation from which on test accuracy stays so far below the best checkpoint's; None: the end is not."""
    best, since = best_within(log, log.cell.steps), None
    for step, value in sorted(accuracy(log, "test").items(), reverse=True):
        if best - value <= loss:
            break
        since = step
    return since


def first_and_last(log: Log, metric: str, count: int = 10) -> tuple[float, float] | None:
    """Mean of a metric over the first and over the last training steps; None where one of the two has no value.

    A step that lacks it is left out: of a teacher's entropy, one in which nothing was distilled.
    """
    windows = (range(1, count + 1), range(log.cell.steps - count + 1, log.cell.steps + 1))
    values = [[log.steps[step][metric] for step in window if metric in log.steps[step]] for window in windows]
    return (float(np.mean(values[0])), float(np.mean(values[1]))) if all(values) else None


def median_between(log: Log, metric: str, first: int, last: int) -> float:
    """Median of a metric over the training steps from `first` to `last`, those with an evaluation left out."""
    evaluated = accuracy(log)
    return float(np.median([log.steps[step][metric] for step in range(first, last + 1) if step not in evaluated]))


Judge = Callable[[Log, int], float]
JUDGES: dict[str, Judge] = {"best": best_within, "last": last_within}


def choose_rates(logs: Iterable[Log]) -> dict[str, float]:
    """By method, the learning rate of the best mean validation accuracy over all checkpoints of the grid's runs.

    The mean over the whole run and over seeds, so that being early counts, and late collapse does; equal means: the
    smaller rate.
    """
    return {
        method: max(sorted(rates), key=lambda rate: float(np.mean(rates[rate])))
        for method, rates in grid_scores(logs).items()
    }


def grid_scores(logs: Iterable[Log]) -> dict[str, dict[float, list[float]]]:
    """By method and learning rate, the mean validation accuracy over all checkpoints of each of the grid's runs."""
    scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for log in logs:
        if log.cell.part == "grid":
            scores[log.cell.method][log.cell.learning_rate].append(float(np.mean(list(accuracy(log).values()))))
    return scores


def by_task(
    runs: Iterable[Log], value: Callable[[Log], float | None], tasks: Iterable[str] = plan.TASKS
) -> dict[str, dict[int, float]]:
    """A value of every run that has one, by task and seed. A task without any is left out."""
    values: dict[str, dict[int, float]] = {task: {} for task in tasks}
    for log in sorted(runs, key=lambda log: log.cell.seed):
        if log.cell.task in values and (found := value(log)) is not None:
            values[log.cell.task][log.cell.seed] = found
    return {task: by_seed for task, by_seed in values.items() if by_seed}


@dataclass(frozen=True)
class Study:
    """Every log there is, and the learning rates; a grid that is not complete has chosen none."""

    logs: tuple[Log, ...]
    rates: dict[str, float]
    alone: tuple[Log, ...] = ()
    """Of runs that had the machine to themselves, for their times only."""

    @classmethod
    def read(cls, results: Path) -> Study:
        """The study of a folder of logs."""
        return cls.of(read_all(results), read_all(folder_of(plan.ALONE, results)))

    @classmethod
    def of(cls, logs: Iterable[Log], alone: Iterable[Log] = ()) -> Study:
        """The study of these logs."""
        logs = tuple(logs)
        made = {log.cell.name for log in logs}
        complete = all(cell.name in made for cell in plan.grid({}))
        return cls(logs, choose_rates(logs) if complete else {}, tuple(alone))

    def runs(self, method: str, *, steps: int = plan.STEPS, rate: float | None = None) -> list[Log]:
        """The runs of a method outside of the grid, at its own learning rate or at the one that is given."""
        if not self.rates:
            return []
        rate = plan.rate(method, self.rates) if rate is None else rate
        return [
            log
            for log in self.logs
            if (log.cell.method, log.cell.steps, log.cell.learning_rate) == (method, steps, rate)
            and log.cell.part != "grid"
        ]

    def scores(
        self,
        method: str,
        judge: str,
        budget: int,
        *,
        tasks: Iterable[str] = plan.TASKS,
        steps: int = plan.STEPS,
        rate: float | None = None,
        seeds: Collection[int] | None = None,
    ) -> dict[str, dict[int, float]]:
        """Test accuracy by task and seed; `judge` is best or last. A task without a run is left out."""
        runs = [log for log in self.runs(method, steps=steps, rate=rate) if seeds is None or log.cell.seed in seeds]
        return by_task(runs, lambda log: JUDGES[judge](log, budget), tasks)

    def ends(self, method: str, metric: str, value: Callable[[float, float], float]) -> dict[str, dict[int, float]]:
        """By task and seed, a value of a metric's mean over the first ten steps of a run and over the last ten."""

        def of_run(log: Log) -> float | None:
            ends = first_and_last(log, metric)
            return None if ends is None else value(*ends)

        return by_task(self.runs(method), of_run)

    def seconds(self, method: str, timing: str, first: int, last: int) -> dict[str, dict[int, float]]:
        """By task and seed, a timing (see median_between) of the runs that had the machine to themselves."""
        runs = (log for log in self.alone if log.cell.method == method)
        return by_task(runs, lambda log: median_between(log, timing, first, last))

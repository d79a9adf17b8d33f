"""One training run: every metric by step, and what follows from them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srpo_verl.budget import HOURS, SECONDS_PER_HOUR
from srpo_verl.report.identity import Identity

VALIDATION = re.compile(r"val-core/(?P<source>.+)/(?P<variable>acc|reward)/mean@(?P<samples>\d+)")
"""veRL's name for the mean accuracy over `samples` validation rollouts per prompt: the paper's avg@16."""

TEST = "/test"
"""A data source NAME/test beside NAME: the checkpoint is chosen on NAME, and what is reported is its NAME/test."""

OF_VALIDATION = ("val-", HOURS, "srpo/best_accuracy_")
"""Beginnings of the metrics that a validation logs by itself, before the first step or after a resumption."""


class Validation(NamedTuple):
    """Accuracies of one benchmark by step: those that choose a checkpoint and those that are reported of it."""

    steps: np.ndarray
    choosing: np.ndarray
    values: np.ndarray

    def best(self, within: np.ndarray | None = None) -> int | None:
        """Index of the first checkpoint that is best on what chooses; None where there is none."""
        indices = np.arange(len(self.steps)) if within is None else np.flatnonzero(within)
        return int(indices[np.argmax(self.choosing[indices])]) if len(indices) else None


@dataclass
class Run:
    """One run, whatever the number of its attempts."""

    experiment: str
    files: list[Path]
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    identity: Identity = field(default_factory=lambda: Identity(""))
    label: str = ""
    srpo: Mapping[str, Any] = field(default_factory=dict)
    """The `srpo` group that it recorded."""
    samples: dict[int, Path] = field(default_factory=dict)
    """Token samples by step."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Commit, versions, hardware, as far as the run recorded them."""

    def series(self, *names: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the first of `names` that was logged at all; empty where none was."""
        for name in names:
            points = [(step, data[name]) for step, data in sorted(self.metrics.items()) if name in data]
            if points:
                steps, values = zip(*points, strict=True)
                return np.array(steps), np.array(values, dtype=float)
        return np.array([], dtype=int), np.array([], dtype=float)

    @property
    def training_steps(self) -> list[int]:
        """Steps that trained; a validation before the first step, or after a resumption, is logged by itself."""
        return [step for step, data in sorted(self.metrics.items()) if trained(data)]

    def hours(self, steps: np.ndarray) -> np.ndarray:
        """Hours of training spent when the weights of each of `steps` existed; NaN where no step was timed.

        `srpo/hours` where the run logged it. Elsewhere, as in logs of another trainer, the same by its definition:
        the sum of the steps' seconds. A step that was trained twice counts once.
        """
        seconds = dict(zip(*self.step_seconds(), strict=True))
        spent, total, timed = {}, 0.0, False
        for step, data in sorted(self.metrics.items()):
            timed = timed or step in seconds or data.get(HOURS, 0.0) > 0
            total = data[HOURS] if HOURS in data else total + seconds.get(step, 0.0) / SECONDS_PER_HOUR
            spent[step] = total
        return np.array([spent[int(step)] if timed else math.nan for step in steps], dtype=float)

    def step_seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and the seconds of training in each: veRL's `timing_s/step` without the writing of a checkpoint."""
        steps, seconds = self.series("timing_s/step")
        saving = [self.metrics[int(step)].get("timing_s/save_checkpoint", 0.0) for step in steps]
        return steps, seconds - np.array(saving, dtype=float)

    @property
    def total_hours(self) -> float:
        """Hours of training of the whole run, NaN where it was not timed."""
        return float(self.hours(np.array([max(self.metrics)]))[0])

    def sources(self) -> dict[str, dict[int, float]]:
        """Accuracy by step for every data source that was validated."""
        points: dict[str, dict[int, float]] = {}
        for step, data in sorted(self.metrics.items()):
            best_rank: dict[str, tuple[bool, int]] = {}
            for name, value in data.items():
                match = VALIDATION.fullmatch(name)
                if match is None:
                    continue
                # Accuracy before reward, and the mean over the most samples.
                rank = (match["variable"] == "acc", int(match["samples"]))
                if rank > best_rank.get(match["source"], (False, 0)):
                    best_rank[match["source"]] = rank
                    points.setdefault(match["source"], {})[step] = value
        return dict(sorted(points.items()))

    def validation(self) -> dict[str, Validation]:
        """Per benchmark (veRL's data source), and their "average" where there are several."""
        sources = self.sources()
        pairs = {
            name: (values, sources.get(f"{name}{TEST}", values))
            for name, values in sources.items()
            if not (name.endswith(TEST) and name.removesuffix(TEST) in sources)
        }
        curves = {name: _curve(*pair) for name, pair in pairs.items()}
        average = _average(list(curves.values())) if len(curves) > 1 else None
        return curves if average is None else {**curves, "average": average}


def _curve(choosing: dict[int, float], reported: dict[int, float]) -> Validation:
    steps = sorted(choosing.keys() & reported.keys())
    return Validation(
        np.array(steps, dtype=int),
        np.array([choosing[step] for step in steps], dtype=float),
        np.array([reported[step] for step in steps], dtype=float),
    )


def _average(curves: list[Validation]) -> Validation | None:
    """Over the benchmarks, at the steps at which all of them were validated; None where there is no such step."""
    steps = sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves)))
    if not steps:
        return None
    at = [np.searchsorted(curve.steps, steps) for curve in curves]
    return Validation(
        np.array(steps, dtype=int),
        np.mean([curve.choosing[index] for curve, index in zip(curves, at, strict=True)], axis=0),
        np.mean([curve.values[index] for curve, index in zip(curves, at, strict=True)], axis=0),
    )


def trained(data: dict[str, float]) -> bool:
    """Whether the metrics of a step are those of a training step."""
    return any(not name.startswith(OF_VALIDATION) for name in data)

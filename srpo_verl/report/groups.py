"""Runs that are seeds of each other, and their curves together: mean over the seeds and its spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from srpo_verl.config.methods import methods
from srpo_verl.report.identity import label_all
from srpo_verl.report.run import Run

ROLLING_STEPS = 5
"""Window, in steps, of the centred rolling mean of what is logged every step; as wide as Figure 3's."""


@dataclass(frozen=True)
class Curve:
    """A quantity over steps or hours: mean over seeds, and mean plus and minus one standard deviation of them."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    lines: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """Every seed's own points."""


@dataclass(frozen=True)
class Group:
    """Runs of one method, task and settings."""

    label: str
    method: str
    task: str
    runs: tuple[Run, ...]

    def over_steps(self, *names: str, factor: float = 1.0, smooth: bool = True) -> Curve | None:
        """A metric over training steps; None where no run logged it."""
        return self.curve(lambda run: run.series(*names), factor=factor, smooth=smooth)

    def curve(
        self,
        points: Callable[[Run], tuple[np.ndarray, np.ndarray]],
        *,
        factor: float = 1.0,
        smooth: bool = False,
        in_hours: bool = False,
    ) -> Curve | None:
        """The mean over the runs at the steps that all of them have; single runs end where they end.

        Args:
            points: steps and values of a run.
            factor: of the values.
            smooth: take the centred rolling mean of every run first.
            in_hours: over training time, at a step the mean of the runs'.
        """
        curves = [(run, steps, factor * values) for run in self.runs for steps, values in [points(run)] if len(steps)]
        if not curves:
            return None
        raw = [values for _, _, values in curves]
        smoothed = [centred(values) if smooth else values for values in raw]
        common = sorted(set.intersection(*(set(steps.tolist()) for _, steps, _ in curves)))
        at = [np.searchsorted(steps, common) for _, steps, _ in curves]
        table = np.array([values[index] for values, index in zip(smoothed, at, strict=True)])
        x = np.array(common, dtype=float)
        places = [steps.astype(float) for _, steps, _ in curves]
        if in_hours:
            places = [run.hours(steps) for run, steps, _ in curves]
            x = np.mean([hours[index] for hours, index in zip(places, at, strict=True)], axis=0)
        mean = table.mean(axis=0) if len(common) else x
        spread = table.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
        lines = tuple(zip(places, raw, strict=True))
        return Curve(x, mean, mean - spread, mean + spread, len(curves), lines)

    @property
    def seeds(self) -> list[str]:
        """How the runs' seeds are called, where they are known."""
        return [run.identity.seed for run in self.runs if run.identity.seed]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """By task, then method in the order of the registry; runs are grouped by configuration, whatever their folders."""
    by_key: dict[tuple, list[Run]] = {}
    for run in runs:
        by_key.setdefault(run.identity.key, []).append(run)
    identities = [members[0].identity for members in by_key.values()]
    groups = [
        Group(label, identity.method, identity.task, tuple(members))
        for label, identity, members in zip(label_all(identities), identities, by_key.values(), strict=True)
    ]

    places = {method.title: place for place, method in enumerate(methods())}
    return sorted(
        groups, key=lambda group: (group.task, places.get(group.method, len(places)), group.method, group.label)
    )


def centred(values: np.ndarray, window: int = ROLLING_STEPS) -> np.ndarray:
    """Rolling mean around every point, over fewer points at the ends: it leads and trails nowhere."""
    half = window // 2
    reach = [min(half, index, len(values) - 1 - index) for index in range(len(values))]
    return np.array([values[index - r : index + r + 1].mean() for index, r in enumerate(reach)])

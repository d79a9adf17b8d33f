"""What a reader has to know before believing a number: collapses, and runs that peaked and fell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srpo_verl.report.groups import Group
from srpo_verl.report.run import Run

EARLY_STEPS = 10
"""The early level of the response length is the median over this many first steps."""

COLLAPSE_GROWTH = 2.0
COLLAPSE_ENTROPY = 0.1
COLLAPSE_STEPS = 3
"""A collapse is a response length above the early level by this factor while the policy's entropy is below this many
nats, for this many steps in a row (fewer where the log ends)."""

FALL = 5.0
"""Percentage points between a run's peak and its end that are worth a warning, ..."""
FALL_WINDOW = 3
"""... both as medians of so many neighbouring validations, so that one lucky one is no peak."""


@dataclass(frozen=True)
class Collapse:
    """Where responses began to grow while the policy had become nearly deterministic."""

    step: int
    early_length: float
    length: float
    entropy: float


def find_collapse(run: Run) -> Collapse | None:
    """First step of the late collapse other reproductions died of after 220 to 400 steps; None where there is none.

    Both signs are needed: a longer response alone may be better reasoning, a low entropy alone is convergence.
    """
    _, lengths = run.series("response_length/mean")
    if len(lengths) <= EARLY_STEPS:
        return None
    early = float(np.median(lengths[:EARLY_STEPS]))
    later = [step for step in run.training_steps if "response_length/mean" in run.metrics[step]][EARLY_STEPS:]
    collapsed = [
        data["response_length/mean"] > COLLAPSE_GROWTH * early
        and data.get("actor/entropy", math.inf) < COLLAPSE_ENTROPY
        for data in (run.metrics[step] for step in later)
    ]
    for index, step in enumerate(later):
        if all(collapsed[index : index + COLLAPSE_STEPS]):
            data = run.metrics[step]
            return Collapse(step, early, data["response_length/mean"], data["actor/entropy"])
    return None


@dataclass(frozen=True)
class Warning:
    """What was seen of one run."""

    run: Run
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.run.label}: {self.kind}: {self.text}"


def warnings(runs: Sequence[Run]) -> list[Warning]:
    """All that was seen, run by run; also where a check was impossible."""
    return [warning for run in runs for warning in [*_collapse(run), *_fall(run)]]


def by_group(groups: Sequence[Group], found: Sequence[Warning]) -> list[tuple[str, str, list[Warning]]]:
    """Those of one kind about the runs of one group together: (who, kind, warnings)."""
    together = []
    for group in groups:
        of_group = [warning for warning in found if any(warning.run is run for run in group.runs)]
        for kind in dict.fromkeys(warning.kind for warning in of_group):
            same = [warning for warning in of_group if warning.kind == kind]
            concerned = len({id(warning.run) for warning in same})
            who = group.label + (f" on {group.task}" if group.task else "")
            if len(group.runs) > 1:
                who += f", {concerned} of {len(group.runs)} runs"
            together.append((who, kind, same))
    return together


def as_lines(groups: Sequence[Group], found: Sequence[Warning]) -> list[str]:
    """A line per group and kind, with the first run's words."""
    lines = []
    for who, kind, same in by_group(groups, found):
        where = f" ({same[0].run.label})" if len(same) > 1 else ""
        lines.append(f"{who}: {kind}: {same[0].text}{where}")
    return lines


def _collapse(run: Run) -> list[Warning]:
    absent = [name for name in ("response_length/mean", "actor/entropy") if not len(run.series(name)[0])]
    if absent:
        return [Warning(run, "not checked for late collapse", f"{' and '.join(absent)} not logged")]
    collapse = find_collapse(run)
    if collapse is None:
        return []
    text = (
        f"from step {collapse.step} on responses of {collapse.length:.0f} tokens, {collapse.early_length:.0f} at the "
        f"start, with an entropy of {collapse.entropy:.3f} nats (below {COLLAPSE_ENTROPY}). Use a checkpoint from "
        "before that step"
    )
    return [Warning(run, "late collapse", text)]


def _fall(run: Run) -> list[Warning]:
    found = []
    for benchmark, curve in run.validation().items():
        if len(curve.steps) < 2 * FALL_WINDOW:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(100 * curve.values, FALL_WINDOW)
        level = np.median(windows, axis=1)
        peak, end = int(np.argmax(level)), float(level[-1])
        if level[peak] - end > FALL:
            at = curve.steps[peak + FALL_WINDOW // 2]
            text = (
                f"on {benchmark} about {level[peak]:.1f} % around step {at}, {end:.1f} % at the end (medians of "
                f"{FALL_WINDOW} validations). Its best checkpoint is not its last one"
            )
            found.append(Warning(run, "peaked and fell", text))
    return found

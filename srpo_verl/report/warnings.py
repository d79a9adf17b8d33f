"""What a reader has to know before believing a number: guards' alarms, runs that fell, and one seed taken for two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srpo_verl.config.guard_settings import guard_settings
from srpo_verl.config.schema import parse
from srpo_verl.errors import ConfigError
from srpo_verl.guards import Settings, review
from srpo_verl.report.groups import Group
from srpo_verl.report.run import Run

FALL = 5.0
"""Percentage points between a run's peak and its end that are worth a warning, ..."""
FALL_WINDOW = 3
"""... both as medians of so many neighbouring validations, so that one lucky one is no peak."""

_REMEDY = "What to do: leave one of them out, or vary data.seed and actor_rollout_ref.rollout.seed"


@dataclass(frozen=True)
class Warning:
    """What was seen of one run."""

    run: Run
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.run.label}: {self.kind}: {self.text}"


def warnings(runs: Sequence[Run]) -> list[Warning]:
    """All that was seen, run by run."""
    return [*_same_seed(runs), *(warning for run in runs for warning in [*_alarms(run), *_fall(run)])]


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


def _same_seed(runs: Sequence[Run]) -> list[Warning]:
    """Runs of one configuration whose seeds, as far as they are known, are those of another run as well."""
    alike = defaultdict(list)
    for run in runs:
        if run.identity.seeds:
            alike[run.identity.key, run.identity.seeds].append(run)
    found = []
    for same in alike.values():
        for run in same if len(same) > 1 else ():
            others = ", ".join(other.label for other in same if other is not run)
            text = f"the seeds of {others}: the spread of these is not one over seeds. {_REMEDY}"
            found.append(Warning(run, "same seed", text))
    return found


def _alarms(run: Run) -> list[Warning]:
    """What the guards of a run raise on its log, with the settings that it recorded."""
    alarms = review(sorted(run.metrics.items()), _settings(run))
    return [
        Warning(run, alarm.guard, f"since step {alarm.since} {alarm.seen}. What to do: {alarm.remedy}")
        for alarm in alarms
    ]


def _settings(run: Run) -> Settings:
    """The run's own; the rules' defaults where it recorded none, or one of another release."""
    try:
        return guard_settings(parse(run.srpo))
    except ConfigError:
        return Settings()


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

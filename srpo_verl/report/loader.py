"""Read the JSON lines that veRL's `file` logger writes into runs.

Written for logs as they are found after real runs: several files of one resumed run, steps that were trained twice,
and a last line cut off when the process was killed. None of it may pass in silence, because a table would look no
different for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

GENERIC_STEMS = ("metrics", "log", "logs", "train")
"""Names of log files (set by VERL_FILE_LOGGER_PATH) that say nothing about the experiment; the directory's does."""

VALIDATION = re.compile(r"val-core/(?P<source>.+)/(?P<variable>acc|reward)/mean@(?P<samples>\d+)")
"""veRL's name for the mean accuracy over `samples` validation rollouts per prompt: the paper's avg@16."""

HOURS = "srpo/hours"
"""Training time as the run itself counts it, over resumptions as well."""

OF_VALIDATION = ("val-", HOURS, "srpo/best_accuracy_")
"""Beginnings of the metrics that a validation logs by itself, before the first step or after a resumption."""

SECONDS_PER_HOUR = 3600.0


class ReportError(ValueError):
    """A log that cannot be read; the message names the file and the line."""


@dataclass
class Run:
    """One training run: every metric by step. Two runs of the same experiment are seeds of each other."""

    experiment: str
    files: list[Path]
    label: str = ""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)

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
        return [step for step, data in sorted(self.metrics.items()) if _trained(data)]

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

    def validation(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Steps and accuracies per benchmark (veRL's data source), and their "average" where there are several."""
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
        curves = {source: _arrays(values) for source, values in sorted(points.items())}
        if len(points) > 1:
            common = set.intersection(*(set(values) for values in points.values()))
            mean = {step: float(np.mean([values[step] for values in points.values()])) for step in sorted(common)}
            if mean:
                curves["average"] = _arrays(mean)
        return curves


def _arrays(values: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(list(values), dtype=int), np.array(list(values.values()), dtype=float)


def _trained(data: dict[str, float]) -> bool:
    return any(not name.startswith(OF_VALIDATION) for name in data)


@dataclass
class _Log:
    """One file: its records in order of writing."""

    path: Path
    records: list[tuple[int, dict[str, float]]]

    @property
    def first_step(self) -> int:
        return min(step for step, _ in self.records)

    @property
    def is_fresh(self) -> bool:
        """Starts at the beginning of training rather than at a checkpoint."""
        return self.first_step <= 1


def load_runs(directories: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """All runs below `directories`, and notes on whatever about their files a reader of the report should know.

    Files of one directory that share a name are one run if only one of them starts at the beginning (the others were
    resumed), and separate runs if all do.

    Raises:
        ReportError: nothing to read, a malformed line, or files that cannot be told apart.
    """
    notes: list[str] = []
    runs: list[tuple[Path, Run]] = []
    seen: set[Path] = set()
    for directory in directories:
        logs = [log for log in _read_directory(directory, notes) if log.path.resolve() not in seen]
        seen.update(log.path.resolve() for log in logs)
        groups: dict[str, list[_Log]] = {}
        for log in logs:
            groups.setdefault(_experiment(log.path, directory), []).append(log)
        runs += [(directory, run) for name, group in groups.items() for run in _assemble(name, group, notes)]
    _label(runs)
    for _, run in runs:
        notes += _gaps(run)
    return [run for _, run in runs], notes


def _read_directory(directory: Path, notes: list[str]) -> list[_Log]:
    if not directory.is_dir():
        raise ReportError(f"{directory}: not a directory")
    candidates = sorted(directory.rglob("*.jsonl"))
    logs = [log for path in candidates if (log := _read_file(path, notes)) is not None]
    if not logs:
        found = f"{len(candidates)} *.jsonl files, but none of them is one" if candidates else "no *.jsonl file at all"
        raise ReportError(
            f"{directory}: no run log. Looked, in all subdirectories, for *.jsonl files with lines of the form "
            f'{{"step": 1, "data": {{"metric": 0.5}}}}, as trainer.logger=[console,file] writes them; found {found}'
        )
    skipped = len(candidates) - len(logs)
    if skipped:
        notes.append(f"{directory}: {skipped} of {len(candidates)} *.jsonl files are no metric logs and were left out")
    return logs


def _read_file(path: Path, notes: list[str]) -> _Log | None:
    """None for JSON lines of another kind (dumped rollouts, say) and for a file without one whole line."""
    lines = path.read_bytes().split(b"\n")
    last = max((number for number, line in enumerate(lines, 1) if line.strip()), default=0)
    records: list[tuple[int, dict[str, float]]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            if number == last:
                notes.append(f"{path}:{number}: half-written last line left out (was the run killed?)")
                continue
            raise ReportError(f"{path}:{number}: not JSON: {error}") from None
        if not records and isinstance(content, dict) and not isinstance(content.get("data"), dict):
            return None
        records.append(_record(content, f"{path}:{number}"))
    return _Log(path, records) if records else None


def _record(content: object, place: str) -> tuple[int, dict[str, float]]:
    if not isinstance(content, dict):
        raise ReportError(f'{place}: expected an object with "step" and "data", got {type(content).__name__}')
    step, data = content.get("step"), content.get("data")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ReportError(f'{place}: "step" has to be a whole number of at least 0, got {step!r}')
    if not isinstance(data, dict):
        raise ReportError(f'{place}: "data" has to be an object of metrics, got {data!r}')
    # The logger writes NaN and infinity as null: such a value was not measured.
    return step, {name: float(value) for name, value in data.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _experiment(path: Path, directory: Path) -> str:
    """veRL names the file after trainer.experiment_name."""
    return directory.resolve().name if path.stem in GENERIC_STEMS else path.stem


def _assemble(name: str, logs: list[_Log], notes: list[str]) -> list[Run]:
    # Later attempts start at later checkpoints; of two that start at the same one, the later written counts.
    logs = sorted(logs, key=lambda log: (log.first_step, log.path.stat().st_mtime, str(log.path)))
    fresh = [log for log in logs if log.is_fresh]
    if len(fresh) > 1 and len(fresh) < len(logs):
        raise ReportError(
            f"{logs[-1].path}: resumes one of {len(fresh)} runs named {name!r}, and nothing says which; put every run "
            "into a directory of its own and name these directories"
        )
    groups = [[log] for log in logs] if len(fresh) > 1 else [logs]
    runs = []
    for group in groups:
        run = Run(name, [log.path for log in group])
        for log in group:
            for step, data in log.records:
                run.metrics.setdefault(step, {}).update(data)
        repeated = sum(len(log.records) for log in group) - len(run.metrics)
        if len(group) > 1:
            notes.append(f"{name}: {len(group)} files read as one resumed run: {', '.join(map(str, run.files))}")
        if repeated:
            notes.append(f"{name}: steps logged more than once: {repeated}; the later values count")
        runs.append(run)
    return runs


def _label(runs: list[tuple[Path, Run]]) -> None:
    """Name runs in tables and legends: the experiment, and where several share it, the directory as well."""
    for _, run in runs:
        run.label = run.experiment
    taken: dict[str, int] = {}
    for directory, run in runs:
        namesakes = [other for other in runs if other[1].experiment == run.experiment]
        if len(namesakes) == 1:
            continue
        if len({other for other, _ in namesakes}) > 1:
            where = directory.resolve().name
        else:
            where = "/".join(run.files[0].resolve().relative_to(directory.resolve()).parts[:-1]) or directory.name
        label = f"{run.experiment} ({where})"
        taken[label] = taken.get(label, 0) + 1
        run.label = label if taken[label] == 1 else f"{label} #{taken[label]}"


def _gaps(run: Run) -> list[str]:
    steps = run.training_steps
    if not steps:
        return [f"{run.label}: validated only, no training step was logged"]
    notes = []
    # A run that begins at a checkpoint lacks its past as much as one with a hole in the middle.
    missing = steps[-1] - len(steps) + (1 if steps[0] == 0 else 0)
    if missing > 0:
        # The run's own count does not depend on the log.
        lost = "their validations are missing" if HOURS in run.metrics[steps[-1]] else "its hours are too few"
        notes.append(f"{run.label}: {missing} of {steps[-1]} steps are not in the log, so {lost}")
    untimed = sum(not run.metrics[step].keys() & {"timing_s/step", HOURS} for step in steps)
    if untimed:
        notes.append(f"{run.label}: {untimed} of {len(steps)} steps have no timing_s/step, so its hours are too few")
    return notes

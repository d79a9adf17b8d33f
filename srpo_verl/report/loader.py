"""Read run logs: the JSON lines of veRL's `file` logger, and the compact logs of recipes/mini.

Written for logs as they are found after real runs: several attempts of one run, steps that were trained twice, and a
last line cut off when the process was killed. None of it may pass in silence, because a table would look no different
for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srpo_verl.budget import HOURS
from srpo_verl.report.identity import GENERIC, of_cell, of_name, of_record
from srpo_verl.report.run import Run
from srpo_verl.run_files import record_path, sample_paths

ATTEMPT = re.compile(r"attempt-\d+")
"""Folders that the logs of earlier attempts are put into."""
PROVENANCE = ("commit", "versions", "hardware")


class ReportError(ValueError):
    """A log that cannot be read; the message names the file and the line."""


@dataclass
class _Log:
    """One file: its records in order of writing, and what it or its neighbour says of the run."""

    path: Path
    records: list[tuple[int, dict[str, float]]]
    cell: Mapping[str, Any] | None = None
    """Header of a compact log."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The run's own record, where there is one."""

    @property
    def first_step(self) -> int:
        return min(step for step, _ in self.records)

    @property
    def is_fresh(self) -> bool:
        """Starts at the beginning of training rather than at a checkpoint."""
        return self.first_step <= 1


def load_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """All runs of `paths`, and notes on whatever about their files a reader of the report should know.

    Logs whose records name the same folder of checkpoints and the same configuration are attempts of one run. Of logs
    without a record, those of one directory that share a name are one run if only one of them starts at the beginning
    (the others were resumed), and separate runs if all do.

    Args:
        paths: logs, and directories that are searched for logs.

    Raises:
        ReportError: nothing to read, a malformed line, or files that cannot be told apart.
    """
    notes: list[str] = []
    runs: list[tuple[Path, Run]] = []
    seen: set[Path] = set()
    recorded: dict[tuple, list[_Log]] = {}
    for path in paths:
        logs = [log for log in _read(path, notes) if log.path.resolve() not in seen]
        seen.update(log.path.resolve() for log in logs)
        groups: dict[str, list[_Log]] = {}
        for log in logs:
            if "config" in log.record:
                identity = of_record(log.record["config"])
                recorded.setdefault((log.record["checkpoints"], identity.key, identity.seeds), []).append(log)
            else:
                groups.setdefault(_experiment(log.path, path), []).append(log)
        runs += [(path, run) for name, group in groups.items() for run in _assemble(name, group, notes)]
    runs += [(logs[0].path.parent, _attempts(logs, notes)) for logs in recorded.values()]
    _label(runs)
    for _, run in runs:
        notes += _gaps(run)
    unknown = sorted({run.experiment for _, run in runs if not run.identity.recorded})
    if unknown:
        notes.append(f"method and seeds go by the name, no configuration was recorded: {', '.join(unknown)}")
    return [run for _, run in runs], notes


def _read(path: Path, notes: list[str]) -> list[_Log]:
    if path.is_file():
        log = _read_file(path, notes)
        if log is None:
            raise ReportError(f"{path}: no run log. {WANTED}")
        return [log]
    if not path.is_dir():
        raise ReportError(f"{path}: no such file or directory")
    candidates = sorted(path.rglob("*.jsonl"))
    logs = [log for candidate in candidates if (log := _read_file(candidate, notes)) is not None]
    if not logs:
        found = f"{len(candidates)} *.jsonl files, but none of them is one" if candidates else "no *.jsonl file at all"
        raise ReportError(f"{path}: no run log. {WANTED}; found, in all subdirectories, {found}")
    skipped = len(candidates) - len(logs)
    if skipped:
        notes.append(f"{path}: {skipped} of {len(candidates)} *.jsonl files are no metric logs and were left out")
    return logs


WANTED = (
    'Looked for *.jsonl files with lines of the form {"step": 1, "data": {"metric": 0.5}}, '
    "as trainer.logger=[console,file] writes them"
)


def _read_file(path: Path, notes: list[str]) -> _Log | None:
    """None for JSON lines of another kind (dumped rollouts, say) and for a file without one whole line."""
    lines = path.read_bytes().split(b"\n")
    last = max((number for number, line in enumerate(lines, 1) if line.strip()), default=0)
    records: list[tuple[int, dict[str, float]]] = []
    header: dict[str, Any] | None = None
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
        if number == 1 and isinstance(content, dict) and isinstance(content.get("cell"), dict):
            header = content
            continue
        if header is not None:
            records += _columns(content, f"{path}:{number}")
            continue
        if not records and isinstance(content, dict) and not isinstance(content.get("data"), dict):
            return None
        records.append(_record(content, f"{path}:{number}"))
    if not records:
        return None
    cell = header and {**header["cell"], "title": header.get("title")}
    return _Log(path, records, cell, _record_of(path, notes) if header is None else header)


def _record_of(log: Path, notes: list[str]) -> Mapping[str, Any]:
    """The record beside a log; none where it is absent or damaged.

    An attempt that ended before it wrote one has its run's, which lies a folder above.
    """
    path, begun = record_path(log), {}
    if not path.is_file() and ATTEMPT.fullmatch(log.parent.name):
        path, begun = record_path(log.parent.parent / log.name), {"started": ""}
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        of_record(record["config"])
        return {"checkpoints": record["checkpoints"], "started": record["started"], **record, **begun}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"{path}: not read as the record of a run: {type(error).__name__} {error}")
        return {}


def _columns(content: Any, place: str) -> list[tuple[int, dict[str, float]]]:
    """A line of a compact log: the values of some metrics at the same steps."""
    try:
        steps, metrics = content["steps"], content["metrics"]
        rows = [dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)]
        return [_record({"step": step, "data": row}, place) for step, row in zip(steps, rows, strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{place}: not a line of a compact log: {type(error).__name__} {error}") from None


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


def _experiment(path: Path, argument: Path) -> str:
    """veRL names the file after trainer.experiment_name."""
    if path.stem not in GENERIC:
        return path.stem
    return (argument if argument.is_dir() else path.parent).resolve().name


def _assemble(name: str, logs: list[_Log], notes: list[str]) -> list[Run]:
    """Runs of logs that nothing but their names and first steps tell apart."""
    # Later attempts start at later checkpoints; of two that start at the same one, the later written counts.
    logs = sorted(logs, key=lambda log: (log.first_step, log.path.stat().st_mtime, str(log.path)))
    fresh = [log for log in logs if log.is_fresh]
    if len(fresh) > 1 and len(fresh) < len(logs):
        raise ReportError(
            f"{logs[-1].path}: resumes one of {len(fresh)} runs named {name!r}, and nothing says which; put every run "
            "into a directory of its own and name these directories"
        )
    groups = [[log] for log in logs] if len(fresh) > 1 or logs[0].cell else [logs]
    runs = []
    for group in groups:
        cell = group[0].cell
        run = _joined(name, group, notes)
        run.identity = of_cell(cell) if cell else of_name(name)
        runs.append(run)
    return runs


def _attempts(logs: list[_Log], notes: list[str]) -> Run:
    """One run of the attempts that its logs are, by the time at which they began."""
    logs = sorted(logs, key=lambda log: (log.record["started"], log.first_step))
    config = logs[0].record["config"]
    run = _joined(str(config["trainer"]["experiment_name"]), logs, notes)
    run.identity, run.srpo = of_record(config), config["srpo"]
    return run


def _joined(name: str, logs: list[_Log], notes: list[str]) -> Run:
    """Where two attempts have the same step, the later one's counts; so does the later line of one file."""
    run = Run(name, [log.path for log in logs])
    for log in logs:
        trained_again = log.first_step
        if "config" in log.record and log.is_fresh:
            # Begun anew: what an earlier attempt did beyond this one is no part of the run.
            run.metrics, run.samples = {}, {}
        for step, data in log.records:
            run.metrics.setdefault(step, {}).update(data)
        kept = {step: path for step, path in run.samples.items() if step < trained_again}
        run.samples = {**kept, **sample_paths(log.path)}
    run.provenance = {key: logs[-1].record[key] for key in PROVENANCE if key in logs[-1].record}
    lines = [(step for step, _ in log.records) for log in logs if log.cell is None]
    logged = [step for steps in lines for step in steps]
    repeated = len(logged) - len(set(logged))
    if len(logs) > 1:
        notes.append(f"{name}: {len(logs)} files read as attempts of one run: {', '.join(map(str, run.files))}")
    if repeated:
        notes.append(f"{name}: steps logged more than once: {repeated}; the later values count")
    return run


def _label(runs: list[tuple[Path, Run]]) -> None:
    """Name runs in the table of all runs: their own name, with the directory where several share it."""
    names = [run.experiment for _, run in runs]
    taken: dict[str, int] = {}
    for (directory, run), name in zip(runs, names, strict=True):
        label = name
        if names.count(name) > 1:
            inside = run.files[0].resolve().parent
            base = directory.resolve()
            where = "/".join(inside.relative_to(base).parts) if inside.is_relative_to(base) else ""
            several = len({other.resolve() for other, one in runs if one.experiment == name}) > 1
            label = f"{name} ({base.name if several or not where else where})"
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

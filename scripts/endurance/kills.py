"""Runs that are killed with SIGKILL at random moments until they end, against one that was not killed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.endurance.run import LIMIT_S, LOG, Started, arguments_of, difference
from srpo_verl import checkpoints

STEPS = 60
"""Of a run: some twenty seconds, with a checkpoint every second step."""
IN_START, START_S = 0.5, 30.0
"""The share of the kills that falls into the first seconds; a start takes longer than all steps."""

Kill = tuple[float, str]
"""Seconds after a start, and into what the kill fell: start, step, save or removal."""


def killed_run(arguments: Sequence[str], folder: Path, rng: random.Random, mean: float) -> list[Kill]:
    """Start, kill, start again, until the run ends; the kills. Raises RuntimeError, TimeoutError.

    Args:
        mean: seconds from the first training step to a kill, of those that do not fall into the start.
    """
    kills: list[Kill] = []
    while True:
        started = time.time()
        run = Started(arguments, folder)
        try:
            status = _wait(run.process, folder / LOG, started, rng, mean)
        finally:
            run.end()
        if status == 0:
            return kills
        if status is not None:
            raise RuntimeError(f"{folder}: exit status {status} after the kills at {kills}")
        kills.append((round(time.time() - started, 2), moment(folder, started)))


def _wait(process: subprocess.Popen, log: Path, started: float, rng: random.Random, mean: float) -> int | None:
    """Exit status; None: the moment of the kill has come."""
    in_start = rng.random() < IN_START
    at = started + rng.uniform(0, START_S) if in_start else None
    while process.poll() is None:
        if at is None and _trains(log, started):
            at = time.time() + rng.expovariate(1 / mean)
        if at is not None and time.time() >= at:
            return None
        if time.time() > started + LIMIT_S:
            raise TimeoutError(f"{log.parent}: no end after {LIMIT_S:.0f} s")
        time.sleep(0.01)
    return process.returncode


def moment(folder: Path, started: float) -> str:
    """What a run that was started at this time was doing when it was killed."""
    root = folder / "checkpoints"
    if _since(root.glob(f"*/{checkpoints.UNFINISHED}"), started):
        return "save"
    if _since(root.glob(f"*{checkpoints.REMOVED}"), started):
        return "removal"
    return "step" if _trains(folder / LOG, started) else "start"


def _trains(log: Path, started: float) -> bool:
    """Whether this attempt has logged a training step: the first line is the validation before it."""
    return _since([log], started) and log.read_text().count("\n") > 1


def _since(paths: Iterable[Path], started: float) -> bool:
    """Whether one of them is there, and of this attempt."""
    return any(path.exists() and path.stat().st_ctime > started for path in paths)


def kills(out: Path, wanted: int, seed: int, mean: float) -> None:
    """Runs until there were so many kills in all; prints the table of all that are on record."""
    arguments, record = arguments_of(out / "inputs", STEPS), out / "kills.jsonl"
    whole = out / "whole"
    if not (whole / "checkpoints" / f"global_step_{STEPS}" / checkpoints.MARK).exists():
        shutil.rmtree(whole, ignore_errors=True)
        if Started(arguments, whole).wait() != 0:
            raise RuntimeError(f"{whole}: the run that is not killed has failed; see its stdout.log")
    while True:
        done = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        print(_kill_line(done), flush=True)
        if sum(len(run["kills"]) for run in done) >= wanted:
            return
        number = len(done)
        folder = out / f"run-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        found = killed_run(arguments, folder, random.Random(f"{seed}-{number}"), mean)
        with record.open("a") as stream:
            result = {"run": number, "kills": found, "difference": difference(folder, whole, STEPS)}
            print(json.dumps(result), file=stream)
        shutil.rmtree(folder)


def _kill_line(done: Sequence[dict]) -> str:
    where = Counter(where for run in done for _, where in run["kills"])
    largest = max((run["difference"] for run in done), default=0.0)
    return (
        f"{len(done)} runs ended after {where.total()} kills"
        f" ({', '.join(f'{count} in a {name}' for name, count in sorted(where.items()))});"
        f" largest difference of a weight: {largest:.2g}"
    )

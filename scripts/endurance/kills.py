"""Runs that are killed with SIGKILL at random moments until they end, against one that was not killed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scripts.endurance.run import STEPS, Started, arguments_of, difference


def killed_run(arguments: Sequence[str], folder: Path, rng: random.Random, mean: float) -> list[float]:
    """Start, kill, start again, until the run ends; the seconds after which it was killed. Raises RuntimeError.

    Args:
        mean: seconds from a start to a kill. About those of a run, so that kills fall into starts, steps and saves.
    """
    kills: list[float] = []
    while True:
        run, after = Started(arguments, folder), rng.expovariate(1 / mean)
        try:
            status = run.process.wait(after)
        except subprocess.TimeoutExpired:
            kills.append(round(after, 2))
            continue
        finally:
            run.end()
        if status != 0:
            raise RuntimeError(f"{folder}: exit status {status} after the kills at {kills}")
        return kills


def kills(out: Path, wanted: int, seed: int, mean: float) -> None:
    """Runs until there were so many kills in all; prints the table of all that are on record."""
    arguments, record = arguments_of(out / "inputs"), out / "kills.jsonl"
    whole = out / "whole"
    if not (whole / "checkpoints" / f"global_step_{STEPS}" / "srpo_checkpoint.json").exists():
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
            print(json.dumps({"run": number, "kills": found, "difference": difference(folder, whole)}), file=stream)
        shutil.rmtree(folder)


def _kill_line(done: Sequence[dict]) -> str:
    count = sum(len(run["kills"]) for run in done)
    largest = max((run["difference"] for run in done), default=0.0)
    return f"{len(done)} runs ended after {count} kills; largest difference of a weight: {largest:.2g}"

"""The study: ``python -m recipes.mini.study --part grid`` (then A, B, C), resumable, two runs at a time.

Every run is stock veRL with a shipped configuration on the CPU, in a process group of its own under a time limit. Its
compact log goes to ``results/``; a run that has one is not made again, a run that failed is tried once more, and what
failed twice is listed at the end. Starting models and data are made where they are missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

from recipes.mini import logs, plan, verifier
from recipes.mini.best import choose_rates
from recipes.mini.make_data import COUNTS, make_data
from recipes.mini.plan import Cell
from recipes.mini.tasks import TASKS
from recipes.runner import end_session, run_environment
from recipes.small_model import Sizes, training_command

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
TRIES = 2
SECONDS_PER_STEP = 12.0
START_SECONDS = 300.0
"""Time limit of a run: a start, and so much per step; several times what one takes."""

_making = Lock()


class RunFailed(Exception):
    """A run that did not end well; the message is the end of its output."""


def provenance() -> dict[str, Any]:
    """What a log says about where it comes from."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with open("/proc/cpuinfo") as stream:
        processors = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    return {
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "versions": {name: importlib.metadata.version(name) for name in ("verl", "torch", "transformers", "ray")},
        "hardware": f"{len(processors)} x {processors[0] if processors else 'unknown processor'}",
    }


def starting_model(task: str, seed: int, work: Path) -> Path:
    """Folder of the task's model of this seed, made where it is missing; in a process of its own, with one thread."""
    out = work / "models" / f"{task}-{seed}"
    command = [sys.executable, "-m", "recipes.mini.make_model", "--task", task, "--seed", str(seed), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def data_of(task: str, seed: int, work: Path) -> Path:
    """Folder of the task's parquet files of this seed."""
    out = work / "data" / f"{task}-{seed}"
    if not all((out / f"{split}.parquet").is_file() for split in COUNTS):
        make_data(TASKS[task], out, seed=seed)
    return out


def command_of(cell: Cell, model: Path, data: Path, run: Path) -> list[str]:
    """The stock veRL command of a cell."""
    task, method = TASKS[cell.task], plan.METHODS[cell.method]
    # Question, demonstration, and the words around them.
    teacher_prompt = task.max_prompt_tokens + task.max_response_tokens + 16
    return training_command(
        method.config,
        sizes=Sizes(task.max_prompt_tokens, task.max_response_tokens, teacher_prompt if method.has_teacher else None),
        distils=method.distils,
        model=model,
        train=data / "train.parquet",
        validation=[data / "validation.parquet", data / "test.parquet"],
        reward=Path(verifier.__file__),
        run=run,
        steps=cell.steps,
        seed=cell.seed,
        learning_rate=cell.learning_rate,
        extra=["trainer.project_name=mini", "trainer.save_freq=-1", *method.overrides],
    )


def run_cell(cell: Cell, work: Path, results: Path, source: dict[str, Any]) -> float:
    """Make one run and write its log; returns its seconds. Raises RunFailed."""
    with _making:
        model, data = starting_model(cell.task, cell.seed, work), data_of(cell.task, cell.seed, work)
    run = work / "runs" / cell.name
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    command = command_of(cell, model, data, run)
    started = time.monotonic()
    limit = START_SECONDS + SECONDS_PER_STEP * cell.steps
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_directory, (run / "output.log").open("wb") as output:
        environment = {**run_environment(run / "metrics.jsonl", ray_directory), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=run, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | str = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = f"none within {limit:.0f} s"
        finally:
            end_session(process)
    steps = _metrics(run / "metrics.jsonl")
    if code != 0 or max(steps, default=0) < cell.steps:
        tail = "\n".join((run / "output.log").read_text(errors="replace").splitlines()[-15:])
        raise RunFailed(f"{cell.name}: exit code {code}, {max(steps, default=0)} of {cell.steps} steps\n{tail}")
    seconds = time.monotonic() - started
    places = ((str(work), "WORK"), (str(ROOT), "."), (sys.executable, "python"))
    shown = [_shorten(word, places) for word in command]
    logs.write(results / f"{cell.name}.jsonl", cell, {**source, "command": shown, "seconds": round(seconds)}, steps)
    shutil.rmtree(run, ignore_errors=True)
    return seconds


def _shorten(word: str, places: Sequence[tuple[str, str]]) -> str:
    for place, name in places:
        word = word.replace(place, name)
    return word


def _metrics(path: Path) -> dict[int, dict[str, float]]:
    steps: dict[int, dict[str, float]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            steps.setdefault(entry["step"], {}).update(entry["data"])
    return steps


def cells_of(part: str, results: Path) -> list[Cell]:
    """The runs of a part; all but the grid need the grid's results. Raises ValueError where these are missing."""
    if part == "grid":
        return list(plan.grid())
    best = choose_rates(logs.read_all(results))
    missing = [method for method in plan.METHODS if method not in best]
    if missing:
        raise ValueError(f"no learning rate is chosen yet for {', '.join(missing)}: run --part grid first")
    return list({"A": plan.comparison, "B": plan.further, "C": plan.long_run}[part](best))


def run_all(cells: Sequence[Cell], work: Path, results: Path, at_once: int) -> list[str]:
    """Make the runs that have no log yet; returns what failed, in words."""
    wanted = list({cell.name: cell for cell in cells if not (results / f"{cell.name}.jsonl").is_file()}.values())
    print(f"{len(wanted)} of {len({cell.name for cell in cells})} runs to make, {at_once} at a time", flush=True)
    source, failed, started = provenance(), [], time.monotonic()

    def attempt(cell: Cell) -> float:
        for left in reversed(range(TRIES)):
            try:
                return run_cell(cell, work, results, source)
            except (RunFailed, subprocess.CalledProcessError):
                if not left:
                    raise
        raise AssertionError("TRIES is at least 1")

    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(attempt, cell): cell for cell in wanted}
        for done, future in enumerate(as_completed(waiting), start=1):
            elapsed = time.monotonic() - started
            rest = elapsed / done * (len(wanted) - done)
            try:
                outcome = f"{future.result():.0f} s"
            except (RunFailed, subprocess.CalledProcessError) as error:
                failed.append(str(error))
                outcome = "FAILED"
            print(f"{done}/{len(wanted)} {waiting[future].name}: {outcome}, {rest / 3600:.1f} h to go", flush=True)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("grid", "A", "B", "C"), required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "mini", help="models, data and running runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="compact logs")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--only", default="", help="runs whose name holds this text")
    parser.add_argument("--steps", type=int, help="other than the plan's, for a small version")
    parser.add_argument("--dry-run", action="store_true", help="list the runs")
    arguments = parser.parse_args(argv)
    work, results = arguments.work.resolve(), arguments.results.resolve()
    cells = [cell for cell in cells_of(arguments.part, results) if arguments.only in cell.name]
    if arguments.steps is not None:
        cells = [Cell(**{**vars(cell), "steps": arguments.steps}) for cell in cells]
    if arguments.dry_run:
        for cell in cells:
            print(cell.name, "(made)" if (results / f"{cell.name}.jsonl").is_file() else "")
        return 0
    failed = run_all(cells, work, results, arguments.at_once)
    for message in failed:
        print(f"\n{message}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The study: ``python -m recipes.mini.study``, from nothing to the logs, resumable, two runs at a time.

Parts are made in order (grid, A to F; recipes/mini/plan.py says what is in them). Every run is stock veRL with a
shipped configuration on the CPU. Its compact log goes to ``results/``; a run that has one is not made again, a run
that failed is tried again, and what failed for good is listed at the end. Starting models and data are made where
they are missing. Part F, for times, is made one run at a time: leave the machine alone meanwhile. ``--plan`` prints
the parts and the hours they take.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from recipes.mini import logs, plan
from recipes.mini.best import choose_rates
from recipes.mini.make_model import Settings
from recipes.mini.plan import Cell
from recipes.mini.run import ROOT, RunFailed, provenance, run_cell

RESULTS = Path(__file__).resolve().parent / "results"
TRIES, START_TRIES = 2, 6
"""Of a run that fails after its first step, and before it: Ray gives itself 30 s to start, which a machine that has
other work misses now and then."""
START_SECONDS, STEP_SECONDS, MODEL_SECONDS = 45.0, 0.9, 250.0
"""What a start, a step and a starting model take on one of two cores; for the expected hours only."""


def cells_of(part: str, results: Path) -> list[Cell]:
    """The runs of a part; all but the grid need the grid's results. Raises ValueError where these are missing."""
    best = choose_rates(logs.read_all(results))
    missing = [method for method in plan.MAIN if method not in best]
    if missing and part != "grid":
        raise ValueError(f"no learning rate is chosen yet for {', '.join(missing)}: the grid comes first")
    return list(plan.PARTS[part](best))


def made(cell: Cell, results: Path) -> bool:
    """Whether the run has its log."""
    return (results / f"{cell.name}.jsonl").is_file()


def run_all(
    cells: Sequence[Cell], work: Path, results: Path, at_once: int, warmup_steps: int = Settings.steps
) -> list[str]:
    """Make the runs that have no log yet; returns what failed, in words."""
    wanted = list({cell.name: cell for cell in cells if not made(cell, results)}.values())
    print(f"{len(wanted)} of {len({cell.name for cell in cells})} runs to make, {at_once} at a time", flush=True)
    source, failed, started = provenance(), [], time.monotonic()

    def attempt(cell: Cell) -> float:
        for number in itertools.count(1):
            try:
                return run_cell(cell, work, results, source, warmup_steps)
            except RunFailed as error:
                if number >= (TRIES if error.reached else START_TRIES):
                    raise
                print(f"once more, {error}", flush=True)
        raise AssertionError("counting ends nowhere")

    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(attempt, cell): cell for cell in wanted}
        for done, future in enumerate(as_completed(waiting), start=1):
            rest = (time.monotonic() - started) / done * (len(wanted) - done)
            try:
                outcome = f"{future.result():.0f} s"
            except RunFailed as error:
                failed.append(str(error))
                outcome = "FAILED"
            now = time.strftime("%H:%M")
            print(
                f"{now} {done}/{len(wanted)} {waiting[future].name}: {outcome}, {rest / 3600:.1f} h to go", flush=True
            )
    return failed


def print_plan(results: Path) -> None:
    """Runs, those made, and the expected hours of the rest, by part."""
    best = choose_rates(logs.read_all(results))
    # Until rates are chosen, which runs repeat the comparison at SRPO's is open; the number of the others is not.
    rates = {method: best.get(method, 0.0) for method in plan.MAIN}
    models: set[tuple[str, int]] = set()
    print("part   runs  made  starting models  hours of two cores for the rest")
    for part, make in plan.PARTS.items():
        cells = list({cell.name: cell for cell in make(rates)}.values())
        rest = [cell for cell in cells if not made(cell, logs.folder_of(part, results))]
        new = {(cell.task, cell.seed) for cell in rest} - models
        models |= new
        seconds = sum(START_SECONDS + STEP_SECONDS * cell.steps for cell in rest) + MODEL_SECONDS * len(new)
        print(f"{part:<5} {len(cells):>5} {len(cells) - len(rest):>5} {len(new):>16}  {seconds / 2 / 3600:>6.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=plan.PARTS, nargs="+", default=list(plan.PARTS))
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "mini", help="models, data and running runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="compact logs")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--only", default="", help="runs whose name this regular expression is found in")
    parser.add_argument("--steps", type=int, help="other than the plan's, for a small version")
    parser.add_argument("--warmup-steps", type=int, default=Settings.steps, help="of the starting models, likewise")
    parser.add_argument("--plan", action="store_true", help="print the parts and the hours they take")
    arguments = parser.parse_args(argv)
    work, results = arguments.work.resolve(), arguments.results.resolve()
    if arguments.plan:
        print_plan(results)
        return 0
    failed = []
    for part in arguments.part:
        cells = [cell for cell in cells_of(part, results) if re.search(arguments.only, cell.name)]
        if arguments.steps is not None:
            cells = [replace(cell, steps=arguments.steps) for cell in cells]
        print(f"part {part}: ", end="")
        at_once = 1 if part == plan.ALONE else arguments.at_once
        failed += run_all(cells, work, logs.folder_of(part, results), at_once, arguments.warmup_steps)
    for message in failed:
        print(f"\n{message}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

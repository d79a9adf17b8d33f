"""The runs behind a table or a figure of the paper: ``python -m scripts.launch --table 1 --dry-run``.

A dry run prints one line per run with its launch command, composes every configuration, and checks it against veRL's
schema, the model's context and an estimate of a GPU's memory. Without --dry-run the same checks come first, then the
runs, one after the other. A finished run is skipped, one that was cut off goes on from its checkpoint, a failed one is
reported and the others go on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import cells, runs
from scripts.cells import Cell
from scripts.checks import Checked, cell_overrides, check, launcher, read_launcher

H100_GIB = 79.0
"""What an H100 of 80 GB offers; an H20 of 96 GB has about 95."""


@dataclass(frozen=True)
class Planned:
    """A cell with its folder and what is launched."""

    cell: Cell
    folder: Path
    settings: list[str]

    @property
    def command(self) -> list[str]:
        recipe = launcher(self.cell.method)
        return ["bash", str(recipe.relative_to(runs.ROOT)), *self.settings]


def plan(chosen: Sequence[Cell], out: Path, data: Path, extra: Sequence[str]) -> list[Planned]:
    """Cells with their folders below `out`."""
    return [
        Planned(cell, out / cell.name, cell_overrides(cell, out / cell.name, data, extra=extra)) for cell in chosen
    ]


def check_all(planned: Sequence[Planned], device_gib: float) -> list[str]:
    """Check and print every cell, one line each; return the names of those that do not pass."""
    known: dict[tuple[str, str, str], Checked | Exception] = {}
    failed = []
    for item in planned:
        # Seeds differ in nothing that is checked.
        key = (item.cell.method, item.cell.model, item.cell.benchmark)
        if key not in known:
            try:
                known[key] = check(read_launcher(launcher(item.cell.method), item.settings), device_gib)
            except Exception as error:
                known[key] = error
        found = known[key]
        if isinstance(found, Checked):
            print(f"ok      {item.cell.name}: {found.summary}: {shlex.join(item.command)}", flush=True)
        else:
            print(f"REFUSED {item.cell.name}: {type(found).__name__}: {found}: {shlex.join(item.command)}", flush=True)
            failed.append(item.cell.name)
    return failed


def missing_data(planned: Sequence[Planned], data: Path) -> list[str]:
    """Commands that would make the benchmarks' files that are not there."""
    names = dict.fromkeys(item.cell.benchmark for item in planned)
    return [
        f"python -m srpo_verl.data {name} --source DIR --out {data / name}"
        for name in names
        if not all((data / name / f"{split}.parquet").is_file() for split in ("train", "test"))
    ]


def run_all(planned: Sequence[Planned]) -> list[str]:
    """Run what has not finished; return the names of the cells that failed."""
    failed = []
    for number, item in enumerate(planned, start=1):
        place = f"[{number}/{len(planned)}] {item.cell.name}"
        try:
            if runs.is_finished(item.folder, item.settings):
                print(f"{place}: finished before, skipped", flush=True)
                continue
        except runs.OtherSettings as error:
            print(f"{place}: FAILED: {error}", flush=True)
            failed.append(item.cell.name)
            continue
        attempt = runs.next_attempt(item.folder)
        print(f"{place}: attempt {attempt.number}, output in {attempt.output}", flush=True)
        status = runs.run(item.command, item.folder, item.settings)
        if status == 0:
            print(f"{place}: finished", flush=True)
        else:
            print(f"{place}: FAILED with exit status {status}; the end of its output:", flush=True)
            print("\n".join(attempt.output.read_text(errors="replace").splitlines()[-20:]), flush=True)
            failed.append(item.cell.name)
    return failed


def _parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="python -m scripts.launch", description=lines[0], epilog=" ".join(lines[2:]))
    for kind in ("table", "figure"):
        numbers = [name.split()[1] for name in cells.SETS if name.startswith(kind)]
        parser.add_argument(f"--{kind}", action="append", default=[], choices=numbers, help="may be repeated")
    methods = dict.fromkeys(method for methods, _ in cells.SETS.values() for method in methods)
    parser.add_argument("--method", action="append", default=[], choices=list(methods), help="only these; repeatable")
    parser.add_argument("--model", action="append", default=[], choices=cells.MODELS, help="only these; repeatable")
    parser.add_argument("--benchmark", action="append", default=[], choices=cells.BENCHMARKS, help="only these")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions; single runs prove nothing (default: 1)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the parquet files (default: data)")
    parser.add_argument(
        "--out", type=Path, default=runs.ROOT / "outputs" / "paper", help="folder of the runs' folders"
    )
    parser.add_argument("--gpu-gib", type=float, default=H100_GIB, help="memory of one GPU (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print and check, start nothing")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides for every run, after --")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 if a cell was refused or failed; 2 for wrong arguments."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    sets = [f"table {number}" for number in arguments.table] + [f"figure {number}" for number in arguments.figure]
    if not sets:
        parser.error("say which: --table or --figure")
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    chosen = cells.select(
        sets,
        methods=arguments.method,
        models=arguments.model,
        benchmarks=arguments.benchmark,
        seeds=arguments.seeds,
    )
    if not chosen:
        parser.error(f"no run of {', '.join(sets)} has all of these: see docs/reproduce.md")
    data = arguments.data.resolve()
    planned = plan(chosen, arguments.out.resolve(), data, arguments.overrides)

    refused = check_all(planned, arguments.gpu_gib)
    print(f"{len(planned)} runs, {len(refused)} refused" + "".join(f"\n  {name}" for name in refused), flush=True)
    if refused:
        return 1
    if arguments.dry_run:
        return 0
    if commands := missing_data(planned, data):
        print("no data; first\n  " + "\n  ".join(commands), file=sys.stderr)
        return 1
    failed = run_all(planned)
    print(
        f"{len(planned) - len(failed)} of {len(planned)} runs finished" + "".join(f"\n  failed: {n}" for n in failed)
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

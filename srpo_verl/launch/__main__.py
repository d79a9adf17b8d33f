"""The runs behind a table or a figure of the paper.

Every configuration is composed and checked against veRL's schema, the model's context and an estimate of a GPU's
memory; the commands are written into a file. Then the runs, one after the other, unless it is a dry run. A finished
run is skipped, one that was cut off goes on from its checkpoint, a failed one is reported and the others go on.
SIGTERM ends the present run with a checkpoint, and this with exit status 75.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from srpo_verl.launch import cells, runs
from srpo_verl.launch.cells import Cell, cell_settings, command_of
from srpo_verl.launch.checks import Checked, check
from srpo_verl.stopping import RESUMABLE

H100_GIB = 79.0
"""What an H100 of 80 GB offers; an H20 of 96 GB has about 95."""

COMMANDS = "commands.sh"
"""In the folder of the runs' folders."""


@dataclass(frozen=True)
class Planned:
    """A cell with its folder and what is launched."""

    cell: Cell
    folder: Path
    settings: list[str]

    @property
    def command(self) -> list[str]:
        return command_of(self.cell.method, self.settings)


def plan(chosen: Sequence[Cell], out: Path, data: Path, extra: Sequence[str]) -> list[Planned]:
    """Cells with their folders below `out`."""
    return [Planned(cell, out / cell.name, cell_settings(cell, out / cell.name, data, extra=extra)) for cell in chosen]


def check_all(planned: Sequence[Planned], device_gib: float, console: Console) -> list[str]:
    """Check every cell and print a table of them; return the names of those that do not pass."""
    known: dict[tuple[str, str, str], Checked | Exception] = {}
    failed = []
    table = Table("run", "", "tokens, GPU memory; or why not", box=None, pad_edge=False)
    for item in track(planned, "checking", console=console, transient=True, disable=not console.is_terminal):
        # Seeds differ in nothing that is checked.
        key = (item.cell.method, item.cell.model, item.cell.benchmark)
        if key not in known:
            try:
                known[key] = check(item.command, device_gib)
            except Exception as error:
                known[key] = error
        found = known[key]
        if isinstance(found, Checked):
            table.add_row(item.cell.name, "ok", found.summary)
        else:
            table.add_row(item.cell.name, "REFUSED", f"{type(found).__name__}: {found}", style="red")
            failed.append(item.cell.name)
    console.print(table, markup=False, highlight=False)
    return failed


def write_commands(planned: Sequence[Planned], path: Path) -> None:
    """The commands of the runs, one a line, for whoever starts them by other means."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{shlex.join(item.command)}\n" for item in planned))


def missing_data(planned: Sequence[Planned], data: Path) -> list[str]:
    """Commands that would make the benchmarks' files that are not there."""
    names = dict.fromkeys(item.cell.benchmark for item in planned)
    return [
        f"python -m srpo_verl data {name} --source DIR --out {data / name}"
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
        try:
            status = runs.run_on(item.command, item.folder, item.settings)
        except runs.StopAsked:
            print(f"{place}: stopped by SIGTERM; the same command goes on", flush=True)
            sys.exit(RESUMABLE)
        attempt = runs.last_attempt(item.folder)
        if status == 0:
            print(f"{place}: finished", flush=True)
        else:
            print(f"{place}: FAILED with exit status {status}; the end of its output:", flush=True)
            print("\n".join(attempt.output.read_text(errors="replace").splitlines()[-20:]), flush=True)
            failed.append(item.cell.name)
    return failed


EXAMPLES = """examples:
  python -m srpo_verl launch --table 1 --dry-run
  python -m srpo_verl launch --table 1 --method srpo --benchmark physics --seeds 3
  python -m srpo_verl launch --figure 1 --out /scratch/paper -- actor_rollout_ref.rollout.name=sglang
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl launch",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        "--out", type=Path, default=Path("outputs/paper"), help="folder of the runs' folders (default: %(default)s)"
    )
    parser.add_argument("--gpu-gib", type=float, default=H100_GIB, help="memory of one GPU (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check and print, start nothing")
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
    out = arguments.out.resolve()
    planned = plan(chosen, out, data, arguments.overrides)

    refused = check_all(planned, arguments.gpu_gib, Console())
    write_commands(planned, out / COMMANDS)
    print(f"commands: {out / COMMANDS}")
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

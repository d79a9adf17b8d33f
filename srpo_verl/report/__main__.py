"""Command line: ``python -m srpo_verl.report RUN_DIR... --out DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from srpo_verl.report import tables
from srpo_verl.report.figures import write_figures
from srpo_verl.report.loader import ReportError, load_runs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl.report",
        description="Tables and figures of the paper from run logs (trainer.logger=[console,file]).",
        epilog="Logs of the same name in different directories are seeds of one experiment: the report gives their "
        "mean and spread. Logs of the same name in one directory are one run that was resumed. veRL empties its log "
        "when a run is resumed at the same place: set VERL_FILE_LOGGER_ROOT to a new directory inside RUN_DIR first. "
        "Example: python -m srpo_verl report outputs/srpo outputs/grpo --out outputs/report",
    )
    parser.add_argument("run_dir", nargs="+", type=Path, help="directory of a run, searched recursively for *.jsonl")
    parser.add_argument("--out", required=True, type=Path, help="directory for summary.md, CSV files and figures")
    return parser


def write_report(directories: Sequence[Path], out: Path) -> None:
    """Read everything, then write and print.

    Raises:
        ReportError: and then nothing has been written.
    """
    runs, notes = load_runs(directories)
    out.mkdir(parents=True, exist_ok=True)
    figures, left_out = write_figures(runs, out)
    rows = tables.summary_rows(runs)
    written = [out / "summary.md", out / "summary.csv"]
    (out / "summary.md").write_text(tables.markdown(runs, notes, figures), encoding="utf-8")
    tables.write_csv(out / "summary.csv", rows)
    spread = tables.seed_rows(rows)
    if spread:
        tables.write_csv(out / "seeds.csv", spread)
        written.append(out / "seeds.csv")
    else:
        (out / "seeds.csv").unlink(missing_ok=True)
    written += [out / name for name in figures]

    print(tables.short_table(rows))
    if any("*" in cell for row in rows for cell in tables.budget_cells(row, "best_acc")):
        print("* the run ended before the budget did")
    for line in tables.warnings(runs):
        print(f"warning: {line}")
    for note in notes:
        print(f"note: {note}")
    for name, lacking in left_out.items():
        print(f"left out: {name}, no run has logged {lacking}")
    for path in written:
        print(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with the reason on standard error; 2 for wrong arguments."""
    arguments = _parser().parse_args(argv)
    try:
        write_report(arguments.run_dir, arguments.out)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Command line: ``python -m srpo_verl report RUN [RUN...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from srpo_verl.report import tables, text
from srpo_verl.report.figures import draw_figures
from srpo_verl.report.groups import group_runs
from srpo_verl.report.loader import ReportError, load_runs
from srpo_verl.report.page import Content, html
from srpo_verl.report.token_view import token_samples
from srpo_verl.report.warnings import as_lines, warnings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl report",
        description="One HTML page, tables and figures of the paper from run logs (trainer.logger=[console,file]).",
        epilog="Runs of one recorded configuration are seeds of each other, whatever their folders are called; runs "
        "without a record go by the name of their log. Attempts of one run are joined. "
        "Example: python -m srpo_verl report outputs/srpo-chemistry outputs/grpo-chemistry --out outputs/report",
    )
    parser.add_argument("run", nargs="+", type=Path, help="log, or folder that is searched for *.jsonl recursively")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of report.html, summary.md and CSV files; default: report, in the run's folder",
    )
    parser.add_argument(
        "--budget-steps",
        type=lambda words: [int(word) for word in words.split(",")],
        default=[],
        metavar="N,N,...",
        help="compare at these training steps instead of hours",
    )
    return parser


def write_report(paths: Sequence[Path], out: Path, budget_steps: Sequence[int] = ()) -> None:
    """Read everything, then write and print.

    Raises:
        ReportError: and then nothing has been written.
    """
    runs, notes = load_runs(paths)
    groups = group_runs(runs)
    runs = [run for group in groups for run in group.runs]
    table_1, overview = tables.table_1(groups, budget_steps), tables.overview(groups)
    ablation = tables.table_2(groups, table_1)
    figures, left_out = draw_figures(groups)
    if isinstance(ablation, str):
        left_out["Ablation (Table 2)"] = ablation
    samples, more_notes = token_samples(groups)
    notes += more_notes
    if not samples:
        left_out["Token view"] = "a run with the logger `file` and srpo.token_sample.every above 0"
    found = warnings(runs)
    page = html(Content(groups, overview, table_1, ablation, figures, left_out, samples, found, notes))

    lines = as_lines(groups, found)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(page, encoding="utf-8")
    (out / "summary.md").write_text(text.summary(runs, overview, table_1, ablation, lines, notes), encoding="utf-8")
    frame = tables.run_frame(groups, budget_steps)
    frame.to_csv(out / "runs.csv", index=False)
    tables.group_frame(frame).to_csv(out / "methods.csv", index=False)

    print(text.short_table(table_1) or "no validation was logged")
    if any(cell.ended_before for table in table_1 for cells in table.rows.values() for cell in cells):
        print(text.STAR)
    for line in lines:
        print(f"warning: {line}")
    for note in notes:
        print(f"note: {note}")
    for title, lacking in left_out.items():
        print(f"left out: {title}, needs {lacking}")
    for name in ("report.html", "summary.md", "runs.csv", "methods.csv"):
        print(f"wrote {out / name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with the reason on standard error; 2 for wrong arguments."""
    arguments = _parser().parse_args(argv)
    first = arguments.run[0]
    own = first if len(arguments.run) == 1 and first.is_dir() else Path()
    try:
        write_report(arguments.run, arguments.out or own / "report", arguments.budget_steps)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

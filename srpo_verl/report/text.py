"""The report as text: the terminal's extract and summary.md."""

from __future__ import annotations

from collections.abc import Sequence

from srpo_verl.markdown import markdown_table
from srpo_verl.report.run import Run
from srpo_verl.report.tables import Ablation, TaskTable

STAR = "*: a run ended before the budget did, so that it counts with what it had."
READING = (
    "Accuracy in percent of the best checkpoint within each budget, and of the last one; mean ± sample standard "
    "deviation over seeds. Hours are training time: no validations, checkpoints or start-up."
)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Columns for a terminal; the first `left` ones begin flush."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    )


def short_table(tables: Sequence[TaskTable]) -> str:
    """Table 1 for a terminal, a block per task."""
    blocks = []
    for table in tables:
        rows = [[label, str(table.seeds[label]), *map(str, cells)] for label, cells in table.rows.items()]
        blocks.append(aligned([table.title, "runs", *table.columns], rows, left=1))
    return "\n\n".join(blocks)


def summary(
    runs: Sequence[Run],
    overview: Sequence[dict[str, str]],
    tables: Sequence[TaskTable],
    ablation: Ablation | str,
    found: Sequence[str],
    notes: Sequence[str],
) -> str:
    """summary.md."""
    parts = ["# Report", "## Warnings", "\n".join(f"* {line}" for line in found) or "None."]
    parts += ["## Runs", markdown_table(list(overview[0]), (list(row.values()) for row in overview))]
    parts += ["## Accuracy", READING]
    for table in tables:
        rows = [[label, str(table.seeds[label]), *map(str, cells)] for label, cells in table.rows.items()]
        rows += [
            [f"the paper's {name}", "", *map(str, values)][: len(table.columns) + 2]
            for name, values in table.of_paper.items()
        ]
        rows = [[*row, *[""] * (len(table.columns) + 2 - len(row))] for row in rows]
        parts += [f"### {table.title}", f"Before training: {table.start}." if table.start.values else ""]
        parts.append(markdown_table(["method", "runs", *table.columns], rows))
    if isinstance(ablation, Ablation):
        parts += [f"### Ablation (Table 2): mean over {', '.join(ablation.tasks)}"]
        header = ["method", *ablation.columns, *(f"paper, {hours} h" for hours in (1, 5, 10))]
        parts.append(
            markdown_table(
                header, ([name, *own, *map(str, of_paper)] for name, (own, of_paper) in ablation.rows.items())
            )
        )
    if any("*" in str(cell) for table in tables for cells in table.rows.values() for cell in cells):
        parts.append(STAR)
    parts += [
        "## Logs read",
        "\n".join(f"* {run.label}: {', '.join(f'`{path}`' for path in run.files)}" for run in runs),
    ]
    parts.append("\n".join(f"* {note}" for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"

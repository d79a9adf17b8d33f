"""Tables of the findings page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from recipes.mini.verdicts import NOT_RUN
from srpo_verl.markdown import markdown_table


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; a word where no cell of it was run."""
    rows = list(rows)
    if all(cell == NOT_RUN for row in rows for cell in row[1:]):
        return [f"{header[0]}: {NOT_RUN}".removeprefix(": ")]
    return markdown_table(header, rows).splitlines()


def mean_and_range(values: Iterable[float]) -> str:
    """Mean, and smallest and largest."""
    values = list(values)
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

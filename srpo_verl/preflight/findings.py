"""What a check found, and how a list of it is printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ERROR, NOTE, OK = "error", "note", "ok"

MAX_SHOWN = 20
"""Rows of one kind that are printed."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: "error": the run would fail, or train on something else than is meant. "note": worth knowing, or
            unchecked. "ok": checked.
        subject: what was looked at, such as "model" or "ground truth".
        message: what was found.
        remedy: what to do; findings of one kind have the same.
        file: the data file, as it is configured.
        row: the row's number in the file, from 0.
    """

    level: str
    subject: str
    message: str
    remedy: str = ""
    file: str = ""
    row: int | None = None

    @property
    def where(self) -> str:
        """ "FILE row N: ", or as much of it as there is."""
        place = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{place}: " if place else ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.subject}: {self.where}{one_line(self.message)}{remedy}"


def one_line(text: str) -> str:
    """Messages of other libraries have line breaks."""
    return " ".join(text.split())


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that stop a run."""
    return [finding for finding in findings if finding.level == ERROR]


def render(findings: Sequence[Finding]) -> str:
    """The report. Findings on rows are listed by kind, at most `MAX_SHOWN` of each, with their number."""
    kinds: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        of_rows = finding.row is not None
        key = (finding.level, finding.subject, finding.remedy if of_rows else str(finding))
        kinds.setdefault(key, []).append(finding)
    lines = []
    for kind in kinds.values():
        first = kind[0]
        if len(kind) == 1:
            lines.append(f"{first.level:<6} {first}")
            continue
        remedy = f"; {first.remedy}" if first.remedy else ""
        lines.append(f"{first.level:<6} {first.subject}: {len(kind)} rows{remedy}")
        lines += [f"{'':<9}{finding.where}{one_line(finding.message)}" for finding in kind[:MAX_SHOWN]]
        if len(kind) > MAX_SHOWN:
            lines.append(f"{'':<9}... and {len(kind) - MAX_SHOWN} more")
    return "\n".join(lines)


def last_line(findings: Sequence[Finding]) -> str:
    """The one line to read where a run is refused."""
    wrong = errors(findings)
    more = f" (the first of {len(wrong)} errors, listed above)" if len(wrong) > 1 else ""
    return f"srpo_verl: {wrong[0]}{more}"


def write(findings: Iterable[Finding], file: Path) -> None:
    """Write the whole list, one JSON object per line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(asdict(finding), ensure_ascii=False)}\n" for finding in findings))

"""What this package depends on inside veRL, and whether another veRL still has it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from srpo_verl.markdown import markdown_table
from srpo_verl.upstream.points import IMPORTED, OVERRIDDEN, RELIED_ON
from srpo_verl.upstream.source import Source

FINGERPRINTS = Path(__file__).with_name("fingerprints.json")
"""{"verl": release, "points": {name: hash}}, written by `python -m srpo_verl upstream --record`."""


@dataclass(frozen=True)
class Difference:
    """A point of ours that another veRL does not have as the recorded one has it."""

    point: str
    vanished: bool
    use: str

    def __str__(self) -> str:
        return f"{'vanished' if self.vanished else 'changed ':<9}{self.point}  ({self.use})"


def points() -> dict[str, str]:
    """Every name of veRL this package overrides, relies on or imports -> what for."""
    uses = dict.fromkeys(IMPORTED, "imported")
    uses |= {name: f"relied on: {why}" for name, why in RELIED_ON.items()}
    for ours, methods in OVERRIDDEN.items():
        uses |= {name: f"overridden by {ours.partition(':')[2]}: {why}" for name, why in methods.items()}
    return uses


def recorded() -> dict[str, str]:
    """Point -> fingerprint in the supported release."""
    return json.loads(FINGERPRINTS.read_text())["points"]


def compare(source: Source) -> list[Difference]:
    """The points whose source differs from the recorded one, those that vanished first."""
    expected = recorded()
    found = {point: source.fingerprint(point) for point in points()}
    differences = [
        Difference(point, found[point] is None, use)
        for point, use in points().items()
        if found[point] is None or found[point] != expected.get(point)
    ]
    return sorted(differences, key=lambda difference: (not difference.vanished, difference.point))


def overridden_table() -> str:
    """OVERRIDDEN as the Markdown table of docs/upstream.md; methods with the same reason share a row."""
    rows = []
    for ours, methods in OVERRIDDEN.items():
        by_reason: dict[tuple[str, str], list[str]] = {}
        for name, why in methods.items():
            base, _, method = name.partition(":")[2].partition(".")
            by_reason.setdefault((base, why), []).append(f"`{method}`")
        shown = f"`{ours.partition(':')[2]}`"
        for (base, why), names in by_reason.items():
            rows.append((shown, f"`{base}`", ", ".join(names), why))
            shown = ""
    return markdown_table(("Class", "veRL's", "Method", "Why"), rows)

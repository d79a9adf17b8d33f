"""What beats what in a few lines: for the README, and at the head of the findings page."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.mini import plan, verdicts
from recipes.mini.best import Study

BEGIN, END_OF_LINES = "<!-- python -m recipes.mini.findings -->", "<!-- as far as here -->"
"""Around the README's lines."""
PAIRS = (("srpo", "grpo"), ("srpo", "sdpo"), (plan.KEPT, "grpo"))
COLUMNS = (("best", verdicts.MIDDLE), ("best", verdicts.END), ("last", verdicts.END))


def lines(study: Study) -> list[str]:
    """A line a pair of PAIRS: the best checkpoint of the budgets of H2, and the last one; and one of the long runs."""
    said = []
    for pair in PAIRS:
        found = [verdicts.compare(study, *pair, judge, budget) for judge, budget in COLUMNS]
        cells = [f"{judge}({budget}) {one.brief}" for (judge, budget), one in zip(COLUMNS, found, strict=True)]
        one, other = (plan.METHODS[method].title for method in pair)
        said.append(f"* {one} against {other}, {found[0].count} pairs of runs: {'; '.join(cells)}")
    return [*said, _long_runs(study)]


def _long_runs(study: Study) -> str:
    since = {plan.METHODS[method].title: verdicts.collapses(study, method) for method in plan.ALL_LONG}
    fallen = "; ".join(f"{title} {verdicts.fell(steps)}" for title, steps in since.items() if steps)
    which = f"that ended more than {verdicts.COLLAPSE:.2f} below their best"
    return f"* runs of {plan.LONG_STEPS} steps on {plan.ONE_TASK} {which}: {fallen or verdicts.NOT_RUN}"


def with_lines(readme: str, lines: Sequence[str]) -> str:
    """The README with its lines replaced."""
    before, rest = readme.split(f"{BEGIN}\n")
    _, after = rest.split(END_OF_LINES)
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END_OF_LINES}{after}"])

"""The findings: ``python -m recipes.mini.findings`` writes docs/findings.md, its tables and its figures from the logs.

Every number comes from the logs in recipes/mini/results; what has no run says "not run". Some lines of the page stand
in the README as well.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from recipes.mini import claims, details, figures, in_short, plan, setting, statistics, verdicts
from recipes.mini.best import Study
from recipes.mini.run import ROOT
from recipes.mini.study import RESULTS
from recipes.mini.table import table
from recipes.mini.verdicts import SHORT_COLUMNS

PAGE = ROOT / "docs" / "findings.md"
TABLES = "findings_tables.md"
"""Beside it."""
README = ROOT / "README.md"
HYPOTHESES = [Path(__file__).resolve().parent / name for name in ("hypotheses.md", "hypotheses_negatives.md")]
NOT_RUN = verdicts.NOT_RUN
END = plan.STEPS
LONG_COLUMNS = (("best", END), ("best", plan.LONG_STEPS), ("last", plan.LONG_STEPS))
INTRODUCTION = """\
# What beats what, in miniature

Does SRPO work? Asked of models of half a million parameters on a CPU, through veRL's trainer and the shipped
configurations, with seeds and intervals, by rules written down
[before the runs](../recipes/mini/hypotheses.md), those of H8 to H10
[after the others](../recipes/mini/hypotheses_negatives.md). [The tasks](../recipes/mini/README.md),
[the methods](methods.md).

This page and [its tables](findings_tables.md) are made from the logs in `recipes/mini/results` by

```bash
python -m recipes.mini.findings
```

in seconds; the logs are made by `python -m recipes.mini.study`. **best(b)** is the test accuracy of the checkpoint
that validation chose among those up to step b, **last(b)** that of the last one. Intervals are 95 %. Differences in
bold are better or worse, by the rule of the hypotheses; of one that is neither bold nor a tie nothing can be said."""

LIMITS = """\
## What this can say, and what it cannot

* These models imitate solutions of tasks with a handful of tokens, and a run sees about ten thousand rollouts. What
  holds here need not hold at 8 billion parameters, where other things fail first; a claim that fails here is not
  refuted there. It can show that a mechanism works as described, and where it stops.
* Steps are budgets of equal rollouts, not of equal time: methods with a teacher take longer for a step.
* Seeds vary the starting model, the order of the questions and the sampling together; intervals are over all three.
  Tasks are four, chosen by us (two of them from `reasoning-gym`), so that intervals say nothing about other tasks.
* Some 240 differences with intervals stand here and in the tables, each for itself: where there is no difference, one
  in twenty shows one.
* Learning rates come from one task and one seed. Methods that take a relative's rate may do better at their own.
* Hand-over was found by experiments with a task of this kind before the study began; the study's seeds and three of
  its tasks are new to it. SRPO with negatives kept got more runs because of three pairs on `sums4`, which H8 and H9
  leave out and the tables hold.
* A larger model is not among them: a step of SmolLM2-135M with 24 rollouts of at most 64 tokens takes 121 s on two
  cores ([recipes/science](../recipes/science/README.md)), so that three methods with two seeds and 100 steps are 20
  hours. **Not run.**"""


def hypotheses() -> dict[str, str]:
    """The claim of each hypothesis, by name, as the files that came before the runs have it."""
    texts = "".join(path.read_text() for path in HYPOTHESES)
    return dict(re.findall(r"^\| (H\d+) \| (.+?) \|", texts, re.MULTILINE))


def verdict_section(study: Study) -> list[str]:
    """Each hypothesis with its outcome."""
    said = hypotheses()
    rows = [
        (judged.name, said[judged.name], f"**{judged.outcome}**", "<br>".join(judged.grounds))
        for judged in verdicts.judge_all(study)
    ]
    return ["## The hypotheses", "", *table(("", "claim", "outcome", "it stands on"), rows)]


def claims_section(study: Study) -> list[str]:
    """What the paper says, and what these runs say of it."""
    said = [
        "By the same intervals. What is a hypothesis as well was put in numbers before the runs, the rest after the",
        "first of them. Beside a claim: where the paper has it, and its points of accuracy (Qwen3-8B, mean of five",
        "benchmarks).",
    ]
    return ["## The paper's claims", "", *said, "", *table(("claim", "in the paper", "", "here"), claims.rows(study))]


def curves_section(study: Study) -> list[str]:
    """The figure."""
    lines = ["## Learning curves", ""]
    if not any(study.runs(method) for method in plan.MAIN):
        return [*lines, NOT_RUN]
    said = "Test accuracy: mean over seeds, band from the smallest to the largest."
    return [*lines, said, "", f"![test accuracy over steps by task and method](images/{figures.CURVES})"]


def pairs_section(study: Study) -> list[str]:
    """Every pair of the main methods, over tasks."""
    rows = []
    for index, one in enumerate(plan.EVERYWHERE):
        for other in plan.EVERYWHERE[:index]:
            cells = [verdicts.compare(study, one, other, *column).cell for column in SHORT_COLUMNS]
            scores = [study.scores(method, "best", END) for method in (one, other)]
            shared = all(len(of_method) == len(plan.TASKS) for of_method in scores)
            chance = str(statistics.probability_of_improvement(*scores)) if shared else NOT_RUN
            rows.append((plan.against(one, other), *cells, chance))
    header = (
        "",
        *details.names(SHORT_COLUMNS),
        f"probability of improvement, best({END})",
    )
    lines = ["## What beats what", "", "Mean difference over tasks, paired by seed.", "", *table(header, rows)]
    if figures.has_differences(study):
        said = "Each method's difference to GRPO; scales differ between panels."
        lines += ["", said, "", f"![differences to GRPO, over all tasks and by task](images/{figures.DIFFERENCES})"]
    return lines


def tasks_section(study: Study) -> list[str]:
    """Where: the differences to GRPO by task."""
    rows = []
    for method in plan.EVERYWHERE[1:]:
        for judge, budget in SHORT_COLUMNS:
            cells = [verdicts.compare(study, method, "grpo", judge, budget, [task]).cell for task in plan.TASKS]
            rows.append((f"{plan.METHODS[method].title}, {judge}({budget})", *cells))
    return ["## Where", "", "Difference to GRPO by task, paired by seed.", "", *table(("", *plan.TASKS), rows)]


def long_section(study: Study) -> list[str]:
    """Ten times as long."""
    rows = []
    for method in plan.ALL_LONG:
        cells = (details.accuracy(study, method, column, steps=plan.LONG_STEPS) for column in LONG_COLUMNS)
        since = verdicts.collapses(study, method)
        steps = ", ".join(str(step) for step in since if step is not None)
        fell = f"{verdicts.fell(since)}{steps and f' ({steps})'}" if since else NOT_RUN
        rows.append((plan.METHODS[method].title, *cells, fell))
    header = ("", *details.names(LONG_COLUMNS), f"ended more than {verdicts.COLLAPSE:.2f} below best (since step)")
    lines = [f"## {plan.LONG_STEPS} steps on {plan.ONE_TASK}", "", *table(header, rows), ""]
    for pair in (("srpo", "grpo"), (plan.KEPT, "grpo"), (plan.KEPT, "srpo")):
        lines += [f"* {verdicts.compare(study, *pair, *column, [plan.ONE_TASK])}" for column in LONG_COLUMNS[1:]]
    if any(study.runs(method, steps=plan.LONG_STEPS) for method in plan.ALL_LONG):
        lines += ["", f"![accuracy and response length of every long run](images/{figures.LONG})"]
    return lines


SECTIONS: tuple[Callable[[Study], list[str]], ...] = (
    verdict_section,
    claims_section,
    pairs_section,
    tasks_section,
    curves_section,
    long_section,
    setting.runs_section,
)


def page(study: Study) -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        "\n".join(in_short.lines(study)),
        *("\n".join(section(study)) for section in SECTIONS),
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="logs of the study")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; tables and images/ go beside it")
    arguments = parser.parse_args(argv)
    study = Study.read(arguments.results)
    arguments.out.write_text(page(study))
    arguments.out.with_name(TABLES).write_text(details.page(study))
    for draw in figures.ALL:
        draw(study, arguments.out.parent / "images")
    if arguments.out == PAGE:
        README.write_text(in_short.with_lines(README.read_text(), in_short.lines(study)))
    print(f"{arguments.out}: {len(study.logs)} runs")


if __name__ == "__main__":
    main()

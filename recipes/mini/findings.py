"""The findings page: ``python -m recipes.mini.findings`` writes docs/findings.md and its figures from the logs.

Every number on the page comes from the logs in recipes/mini/results; what has no run says "not run". Four lines of it
stand in the README as well.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.mini import claims, figures, in_short, plan, setting, statistics, verdicts
from recipes.mini.best import JUDGES, Study
from recipes.mini.losses import TOLD, told_by_method
from recipes.mini.run import ROOT
from recipes.mini.study import RESULTS
from recipes.mini.table import mean_and_range, table
from recipes.mini.verdicts import SHORT_COLUMNS

PAGE = ROOT / "docs" / "findings.md"
README = ROOT / "README.md"
HYPOTHESES = Path(__file__).resolve().parent / "hypotheses.md"
NOT_RUN = verdicts.NOT_RUN
END = plan.STEPS
Column = tuple[str, int]
"""A judge and a budget."""
COLUMNS = tuple((judge, budget) for judge in JUDGES for budget in plan.BUDGETS.values())
"""What methods are compared by."""
LONG_COLUMNS = (("best", END), ("best", plan.LONG_STEPS), ("last", plan.LONG_STEPS))
TEN_SEEDS = (
    ("srpo", "grpo"),
    ("handover", "grpo"),
    ("handover", "srpo"),
    ("srpo", "srpo_no_dw"),
    ("srpo", "advantage_mix"),
    ("advantage_mix", "grpo"),
    ("handover", "handover_blind"),
)
CUT_OFF, REMEMBERED = "srpo/frac_at_length_limit", "srpo/frac_shown_memory"

INTRODUCTION = """\
# What beats what, in miniature

Does SRPO work? Asked of models of half a million parameters on a CPU, through veRL's trainer and the shipped
configurations, with seeds and intervals, by rules
[written down before the runs](../recipes/mini/hypotheses.md). [The tasks](../recipes/mini/README.md),
[the methods](methods.md).

This page is made from the logs in `recipes/mini/results` by

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
* Some two hundred intervals stand here, each for itself: where there is no difference, one in twenty shows one.
* Learning rates come from one task and one seed. Methods that take a relative's rate may do better at their own.
* Hand-over was found by experiments with a task of this kind before the study began; the study's seeds and three of
  its tasks are new to it.
* A larger model is not among them: a step of SmolLM2-135M with 24 rollouts of at most 64 tokens takes 121 s on two
  cores ([recipes/science](../recipes/science/README.md)), so that three methods with two seeds and 100 steps are 20
  hours. **Not run.**"""


def names(columns: Sequence[Column]) -> list[str]:
    """Heads of columns, such as best(60)."""
    return [f"{judge}({budget})" for judge, budget in columns]


def hypotheses() -> dict[str, str]:
    """The claim of each hypothesis, by name, as the file that came before the runs has it."""
    return dict(re.findall(r"^\| (H\d) \| (.+?) \|", HYPOTHESES.read_text(), re.MULTILINE))


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


def _accuracy(study: Study, method: str, column: Column, task: str = plan.ONE_TASK, **settings: Any) -> str:
    """Mean and spread of a method on a task; `settings` as of Study.scores."""
    scores = study.scores(method, *column, tasks=[task], **settings)
    if not scores:
        return NOT_RUN
    values = np.array(list(scores[task].values()))
    return (
        f"{values.mean():.3f} ± {values.std(ddof=1):.3f} ({len(values)})"
        if len(values) > 1
        else f"{values[0]:.3f} (1)"
    )


def _by_task(study: Study, methods: Sequence[str], tasks: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for task in tasks:
        rows = [
            (
                plan.METHODS[method].title,
                *(_accuracy(study, method, column, task) for column in COLUMNS),
            )
            for method in methods
        ]
        header = (task, *names(COLUMNS))
        lines += ["", *table(header, rows)]
    return lines


def accuracy_section(study: Study) -> list[str]:
    """Accuracy by task, and over tasks."""
    rows = []
    for method in plan.MAIN:
        cells = []
        for judge, budget in COLUMNS:
            scores = study.scores(method, judge, budget)
            cells.append(str(statistics.aggregate(scores)) if len(scores) == len(plan.TASKS) else NOT_RUN)
        rows.append((plan.METHODS[method].title, *cells))
    header = ("all tasks", *names(COLUMNS))
    return [
        "## Accuracy within budgets",
        "",
        "Over tasks: interquartile mean and its bootstrap interval. By task: mean ± standard deviation (seeds).",
        "",
        *table(header, rows),
        *_by_task(study, (*plan.MAIN, *plan.ABLATIONS), [plan.ONE_TASK]),
        *_by_task(study, plan.MAIN, [task for task in plan.TASKS if task != plan.ONE_TASK]),
    ]


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
    for index, one in enumerate(plan.MAIN):
        for other in plan.MAIN[:index]:
            cells = [verdicts.compare(study, one, other, *column).cell for column in SHORT_COLUMNS]
            scores = [study.scores(method, "best", END) for method in (one, other)]
            shared = all(len(of_method) == len(plan.TASKS) for of_method in scores)
            chance = str(statistics.probability_of_improvement(*scores)) if shared else NOT_RUN
            rows.append((plan.against(one, other), *cells, chance))
    header = (
        "",
        *names(SHORT_COLUMNS),
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
    for method in plan.MAIN[1:]:
        for judge, budget in SHORT_COLUMNS:
            cells = [verdicts.compare(study, method, "grpo", judge, budget, [task]).cell for task in plan.TASKS]
            rows.append((f"{plan.METHODS[method].title}, {judge}({budget})", *cells))
    return ["## Where", "", "Difference to GRPO by task, paired by seed.", "", *table(("", *plan.TASKS), rows)]


def seeds_section(study: Study) -> list[str]:
    """The comparisons that have ten seeds on one task."""
    rows = []
    for one, other in TEN_SEEDS:
        found = [verdicts.compare(study, one, other, *column, [plan.ONE_TASK]) for column in SHORT_COLUMNS]
        rows.append((plan.against(one, other), str(found[0].count), *(comparison.cell for comparison in found)))
    said = [
        "Seeds 5 to 9 of GRPO, SRPO and hand-over were planned. Those of the ablations were added (part E) when five",
        "pairs could not decide; the hypotheses are judged without them.",
    ]
    header = ("", "pairs", *names(SHORT_COLUMNS))
    return [f"## With up to ten seeds, on {plan.ONE_TASK}", "", *said, "", *table(header, rows)]


def same_rate_section(study: Study) -> list[str]:
    """The repetition at SRPO's learning rate."""
    lines = [f"## At SRPO's learning rate, on {plan.ONE_TASK}", ""]
    if not study.rates:
        return [*lines, f"{NOT_RUN}: rates are not chosen."]
    others = [method for method in plan.MAIN if study.rates[method] != study.rates["srpo"]]
    if not others:
        return [*lines, "Every method chose the same rate: there is nothing to repeat."]
    rows = []
    for method in others:
        cells = (_accuracy(study, method, column, rate=study.rates["srpo"]) for column in SHORT_COLUMNS)
        rows.append((plan.METHODS[method].title, *cells))
    return [
        *lines,
        *table((f"{study.rates['srpo']:g}", *names(SHORT_COLUMNS)), rows),
    ]


def further_section(study: Study) -> list[str]:
    """The other methods on one task."""
    rows = []
    for method in (*plan.ABLATIONS, *plan.FURTHER):
        cells = [
            verdicts.compare(study, method, other, judge, END, [plan.ONE_TASK]).cell
            for other in ("srpo", "grpo")
            for judge in ("best", "last")
        ]
        rows.append((plan.METHODS[method].title, _accuracy(study, method, ("best", END)), *cells))
    header = (
        "",
        f"best({END})",
        *(f"{judge}({END}) - {other}'s" for other in ("SRPO", "GRPO") for judge in ("best", "last")),
    )
    lines = [f"## The other methods, on {plan.ONE_TASK}", "", *table(header, rows)]
    if _never_remembered(study):
        lines += [
            "",
            "The success memory was never asked, since a run sees no question twice: its runs are SRPO's, digit for",
            f"digit. With {plan.FEW_QUESTIONS} questions, of which each comes four to five times (part E):",
            "",
            *_few_questions(study),
        ]
    return lines


def _never_remembered(study: Study) -> bool:
    runs = study.runs("memory")
    return bool(runs) and not any(step.get(REMEMBERED) for log in runs for step in log.steps.values())


def _few_questions(study: Study) -> list[str]:
    rows = []
    for judge, budget in SHORT_COLUMNS:
        spreads = (_accuracy(study, method, (judge, budget)) for method in plan.FEW)
        difference = verdicts.compare(study, *reversed(plan.FEW), judge, budget, [plan.ONE_TASK])
        rows.append((f"{judge}({budget})", *spreads, difference.cell))
    return table(("", *(plan.METHODS[method].title for method in plan.FEW), "difference"), rows)


def long_section(study: Study) -> list[str]:
    """Ten times as long."""
    rows = []
    for method in plan.ALL_LONG:
        cells = (_accuracy(study, method, column, steps=plan.LONG_STEPS) for column in LONG_COLUMNS)
        since = verdicts.collapses(study, method)
        steps = ", ".join(str(step) for step in since if step is not None)
        fell = f"{verdicts.fell(since)}{steps and f' ({steps})'}" if since else NOT_RUN
        rows.append((plan.METHODS[method].title, *cells, fell))
    header = ("", *names(LONG_COLUMNS), f"ended more than {verdicts.COLLAPSE:.2f} below best (since step)")
    lines = [f"## {plan.LONG_STEPS} steps on {plan.ONE_TASK}", "", *table(header, rows), ""]
    lines += [f"* {verdicts.compare(study, 'srpo', 'grpo', *column, [plan.ONE_TASK])}" for column in LONG_COLUMNS[1:]]
    if any(study.runs(method, steps=plan.LONG_STEPS) for method in plan.ALL_LONG):
        lines += ["", f"![accuracy and response length of every long run](images/{figures.LONG})"]
    return lines


def length_section(study: Study) -> list[str]:
    """Whether responses grew or shrank, and how many were cut off."""
    rows = []
    for method in plan.MAIN:
        growth, cut_off = claims.growth(study, method), study.ends(method, CUT_OFF, lambda first, last: last)
        cells = (
            f"{mean_and_range(growth[task].values())}, {np.mean(list(cut_off[task].values())):.0%}"
            if task in growth
            else NOT_RUN
            for task in plan.TASKS
        )
        rows.append((plan.METHODS[method].title, *cells))
    said = [
        "Mean response length of the last ten steps over that of the first ten, smallest and largest over seeds; and",
        "the share of the responses of the last ten that reached the length limit.",
    ]
    return ["## Response length", "", *said, "", *table(("", *plan.TASKS), rows)]


def guards_section(study: Study) -> list[str]:
    """What the guards say of all these runs."""
    counts = told_by_method(study.logs)
    rows = [
        (plan.METHODS[method].title, str(counts[method].total()), *(str(counts[method][word]) for word in TOLD))
        for method in plan.METHODS
        if method in counts
    ]
    said = [
        "Of every run, those that choose learning rates included: whether two evaluations in a row were ten points",
        "below the best before them, and when [the guards](endurance.md#guards), as they are now, first say a word",
        "on its log (`srpo_verl.guards.review`, which a run asks as well).",
    ]
    return ["## Guards", "", *said, "", *table(("", "runs", *TOLD), rows)]


SECTIONS: tuple[Callable[[Study], list[str]], ...] = (
    verdict_section,
    claims_section,
    setting.runs_section,
    setting.models_section,
    setting.grid_section,
    accuracy_section,
    curves_section,
    pairs_section,
    tasks_section,
    seeds_section,
    same_rate_section,
    further_section,
    long_section,
    length_section,
    guards_section,
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
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; figures go to images/ beside it")
    arguments = parser.parse_args(argv)
    study = Study.read(arguments.results)
    arguments.out.write_text(page(study))
    for draw in figures.ALL:
        draw(study, arguments.out.parent / "images")
    if arguments.out == PAGE:
        README.write_text(in_short.with_lines(README.read_text(), in_short.lines(study)))
    print(f"{arguments.out}: {len(study.logs)} runs")


if __name__ == "__main__":
    main()

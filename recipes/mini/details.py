"""The second page of the findings, docs/findings_tables.md: everything by method, task, seed, rate and guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recipes.mini import claims, plan, setting, statistics, verdicts
from recipes.mini.best import JUDGES, Study
from recipes.mini.losses import TOLD, told_by_method
from recipes.mini.table import mean_and_range, table
from recipes.mini.verdicts import SHORT_COLUMNS

NOT_RUN = verdicts.NOT_RUN
END = plan.STEPS
Column = tuple[str, int]
"""A judge and a budget."""
COLUMNS = tuple((judge, budget) for judge in JUDGES for budget in plan.BUDGETS.values())
"""What methods are compared by."""
TEN_SEEDS = (
    ("srpo", "grpo"),
    ("handover", "grpo"),
    ("handover", "srpo"),
    ("srpo", "srpo_no_dw"),
    ("srpo", "advantage_mix"),
    ("advantage_mix", "grpo"),
    ("handover", "handover_blind"),
    (plan.KEPT, "grpo"),
    (plan.KEPT, "srpo"),
)
CUT_OFF, REMEMBERED = "srpo/frac_at_length_limit", "srpo/frac_shown_memory"

INTRODUCTION = """\
# What beats what, in miniature: every table

Beside [the findings](findings.md), from the same logs by the same command. **best(b)** is the test accuracy of the
checkpoint that validation chose among those up to step b, **last(b)** that of the last one. Intervals are 95 %.
Differences in bold are better or worse; of one that is neither bold nor a tie nothing can be said."""


def names(columns: Sequence[Column]) -> list[str]:
    """Heads of columns, such as best(60)."""
    return [f"{judge}({budget})" for judge, budget in columns]


def accuracy(study: Study, method: str, column: Column, task: str = plan.ONE_TASK, **settings: Any) -> str:
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
                *(accuracy(study, method, column, task) for column in COLUMNS),
            )
            for method in methods
        ]
        header = (task, *names(COLUMNS))
        lines += ["", *table(header, rows)]
    return lines


def accuracy_section(study: Study) -> list[str]:
    """Accuracy by task, and over tasks."""
    rows = []
    for method in plan.EVERYWHERE:
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
        *_by_task(study, (*plan.EVERYWHERE, *plan.ABLATIONS), [plan.ONE_TASK]),
        *_by_task(study, plan.EVERYWHERE, [task for task in plan.TASKS if task != plan.ONE_TASK]),
    ]


def seeds_section(study: Study) -> list[str]:
    """The comparisons that have ten seeds on one task."""
    rows = []
    for one, other in TEN_SEEDS:
        found = [verdicts.compare(study, one, other, *column, [plan.ONE_TASK]) for column in SHORT_COLUMNS]
        rows.append((plan.against(one, other), str(found[0].count), *(comparison.cell for comparison in found)))
    said = [
        "Seeds 5 to 9 of GRPO, SRPO and hand-over were planned. Those of the ablations were added (part E) when five",
        "pairs could not decide; the hypotheses are judged without them. Those of SRPO, negatives kept are of part H.",
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
        cells = (accuracy(study, method, column, rate=study.rates["srpo"]) for column in SHORT_COLUMNS)
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
        rows.append((plan.METHODS[method].title, accuracy(study, method, ("best", END)), *cells))
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
        spreads = (accuracy(study, method, (judge, budget)) for method in plan.FEW)
        difference = verdicts.compare(study, *reversed(plan.FEW), judge, budget, [plan.ONE_TASK])
        rows.append((f"{judge}({budget})", *spreads, difference.cell))
    return table(("", *(plan.METHODS[method].title for method in plan.FEW), "difference"), rows)


def length_section(study: Study) -> list[str]:
    """Whether responses grew or shrank, and how many were cut off."""
    rows = []
    for method in plan.EVERYWHERE:
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
    setting.models_section,
    setting.grid_section,
    accuracy_section,
    seeds_section,
    same_rate_section,
    further_section,
    length_section,
    guards_section,
)


def page(study: Study) -> str:
    """The whole page."""
    return "\n\n".join([INTRODUCTION, *("\n".join(section(study)) for section in SECTIONS)]) + "\n"

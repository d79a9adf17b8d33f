"""The hypotheses of hypotheses*.md, judged by their rules: confirmed, falsified, cannot be said, or not run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recipes.mini import plan, statistics
from recipes.mini.best import Study, low_since

CONFIRMED, FALSIFIED, OPEN, NOT_RUN = "confirmed", "falsified", "cannot be said", "not run"
TIE = "a tie"
EARLY, MIDDLE, END = plan.BUDGETS.values()
SHORT_COLUMNS = (*(("best", budget) for budget in plan.BUDGETS.values()), ("last", END))
"""What methods are compared by where there is little room: judges and budgets."""
COLLAPSE = 0.10


@dataclass(frozen=True)
class Comparison:
    """A difference, by task and seed, and what it says: of accuracies better or worse."""

    what: str
    outcome: str
    difference: statistics.Estimate | None
    count: int
    unit: str = "pair"

    @classmethod
    def of(
        cls, what: str, differences: Mapping[str, np.ndarray], tasks: Sequence[str] = plan.TASKS, unit: str = "pair"
    ) -> Comparison:
        """Of the differences of each task; where one of the tasks lacks them it cannot be said, and has no mean."""
        whole = set(differences) == set(tasks)
        outcome = OPEN if differences and not whole else statistics.verdict(differences)
        difference = statistics.mean_difference(differences) if differences and whole else None
        return cls(what, outcome, difference, sum(map(len, differences.values())), unit)

    @property
    def differs(self) -> bool:
        """Whether one of the two is the better one."""
        return self.outcome in ("better", "worse")

    @property
    def word(self) -> str:
        """The outcome as a reader gets it."""
        return self.outcome

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.what}: {NOT_RUN}"
        number = f"{self.count} {self.unit}" + ("" if self.count == 1 else "s")
        return f"{self.what}: {signed(self.difference)}, {number}: {self.word}"

    @property
    def brief(self) -> str:
        """Without the names, where the table around it has them."""
        return NOT_RUN if self.difference is None else f"{signed(self.difference)}: {self.word}"

    @property
    def cell(self) -> str:
        """Of a table, that should be looked over: bold where better or worse, bare where it cannot be said."""
        if self.difference is None or self.outcome == TIE:
            return self.brief
        return f"**{signed(self.difference)}**" if self.differs else signed(self.difference)


@dataclass(frozen=True)
class Judged:
    """A hypothesis with its outcome and what it stands on."""

    name: str
    outcome: str
    grounds: tuple[str, ...]


def signed(estimate: statistics.Estimate) -> str:
    """A difference with its interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f} (no interval from one seed)"
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def compare(
    study: Study,
    one: str,
    other: str,
    judge: str,
    budget: int,
    tasks: Sequence[str] = plan.TASKS,
    seeds: Collection[int] | None = None,
) -> Comparison:
    """One method against another on the tasks and seeds that both have, or on those of them that are given.

    Within a budget that only the long runs reach, these are compared.
    """
    steps = plan.STEPS if budget <= plan.STEPS else plan.LONG_STEPS
    scores = (study.scores(method, judge, budget, tasks=tasks, seeds=seeds, steps=steps) for method in (one, other))
    what = f"{plan.against(one, other)}, {judge}({budget})"
    return Comparison.of(what, statistics.paired(*scores), tasks)


def _decide(
    name: str,
    comparisons: Sequence[Comparison],
    *,
    confirms: Sequence[Sequence[str]],
    falsifies: Sequence[Sequence[str]],
    falsified_by: str = "any",
) -> Judged:
    """Confirmed where every outcome is among those that confirm, falsified where any (or all) is among the others."""
    outcomes = [comparison.outcome for comparison in comparisons]
    refuted = [outcome in among for outcome, among in zip(outcomes, falsifies, strict=True)]
    if all(outcome == NOT_RUN for outcome in outcomes):
        result = NOT_RUN
    elif any(refuted) if falsified_by == "any" else all(refuted):
        result = FALSIFIED
    elif all(outcome in among for outcome, among in zip(outcomes, confirms, strict=True)):
        result = CONFIRMED
    else:
        result = OPEN
    return Judged(name, result, tuple(map(str, comparisons)))


def _better(name: str, comparisons: Sequence[Comparison], falsified_by: str = "any") -> Judged:
    count = len(comparisons)
    return _decide(
        name,
        comparisons,
        confirms=[("better",)] * count,
        falsifies=[("worse", "a tie")] * count,
        falsified_by=falsified_by,
    )


def _stronger_of(study: Study, methods: Sequence[str], budget: int) -> str:
    """The method with the higher mean over tasks at a budget; the first where one has no run."""

    def mean(method: str) -> float:
        scores = study.scores(method, "best", budget)
        return float(np.mean([np.mean(list(seeds.values())) for seeds in scores.values()])) if scores else 0.0

    return max(methods, key=mean)


def collapses(study: Study, method: str, seeds: Collection[int] | None = None) -> list[int | None]:
    """Since which step every long run, or those of some seeds, are far below their best; None: a run ends near it."""
    runs = study.runs(method, steps=plan.LONG_STEPS)
    return [low_since(log, COLLAPSE) for log in runs if seeds is None or log.cell.seed in seeds]


def fell(steps: Sequence[int | None]) -> str:
    """How many runs have such a step."""
    return f"{sum(step is not None for step in steps)} of {len(steps)}"


def _fell_of(method: str, steps: Sequence[int | None]) -> str:
    title = plan.METHODS[method].title
    if not steps:
        return f"{title}, long: {NOT_RUN}"
    return f"{title}: {fell(steps)} runs of {plan.LONG_STEPS} steps end more than {COLLAPSE:.2f} below their best"


def _late_collapse(study: Study) -> Judged:
    since = {method: collapses(study, method) for method in ("sdpo", "handover")}
    grounds = tuple(_fell_of(method, steps) for method, steps in since.items())
    sdpo, handover = ([step is not None for step in steps] for steps in since.values())
    if not sdpo and not handover:
        outcome = NOT_RUN
    elif min(len(sdpo), len(handover)) < len(plan.LONG_SEEDS):
        outcome = OPEN
    elif not any(sdpo) or all(handover):
        outcome = FALSIFIED
    else:
        outcome = CONFIRMED if all(sdpo) and not any(handover) else OPEN
    return Judged("H6", outcome, grounds)


def _no_late_collapse(study: Study) -> Judged:
    """By the two seeds that nobody had seen when it was written."""
    seeds = [seed for seed in plan.FURTHER_SEEDS if seed != 0]
    steps = collapses(study, plan.KEPT, seeds)
    fallen = [step is not None for step in steps]
    if not steps:
        outcome = NOT_RUN
    elif len(steps) < len(seeds):
        outcome = OPEN
    else:
        outcome = FALSIFIED if all(fallen) else OPEN if any(fallen) else CONFIRMED
    return Judged("H10", outcome, (_fell_of(plan.KEPT, steps),))


def _judge_negatives(study: Study) -> list[Judged]:
    """H8 to H10, without the runs of part B that suggested them."""
    unseen = replace(
        study, logs=tuple(log for log in study.logs if (log.cell.method, log.cell.part) != (plan.KEPT, "B"))
    )
    helps = [compare(unseen, plan.KEPT, "srpo", judge, END) for judge in ("best", "last")]
    above = [compare(unseen, plan.KEPT, "grpo", "best", budget) for budget in (MIDDLE, END)]
    return [_better("H8", helps), _better("H9", above), _no_late_collapse(study)]


def judge_all(study: Study) -> list[Judged]:
    """H1 to H10."""
    one_task = [plan.ONE_TASK]
    early_then_late = [compare(study, "sdpo", "grpo", "best", EARLY), compare(study, "sdpo", "grpo", "last", END)]
    above_both = [
        compare(study, "srpo", other, "best", budget) for other in ("grpo", "sdpo") for budget in (MIDDLE, END)
    ]
    # By the seeds of the plan: those of part E were added when these were seen.
    weights = [compare(study, "srpo", "srpo_no_dw", "best", budget, one_task, plan.SEEDS) for budget in (MIDDLE, END)]
    mixing = [compare(study, "srpo", "advantage_mix", "best", END, one_task, plan.SEEDS)]
    seen = [compare(study, "handover", "handover_blind", "best", MIDDLE, one_task, plan.SEEDS)]
    handover = [
        compare(study, "handover", _stronger_of(study, ("srpo", "grpo"), budget), "best", budget)
        for budget in plan.BUDGETS.values()
    ]
    return [
        _decide(
            "H1",
            early_then_late,
            confirms=[("better",), ("worse",)],
            falsifies=[("worse", "a tie"), ("better", "a tie")],
        ),
        _better("H2", above_both),
        _better("H3", weights, falsified_by="all"),
        _better("H4", mixing),
        _decide("H5", handover, confirms=[("better", "a tie")] * 3, falsifies=[("worse",)] * 3),
        _late_collapse(study),
        _better("H7", seen),
        *_judge_negatives(study),
    ]

"""The paper's claims, one by one, as far as runs of the study can say something of them.

What was to be decided stands in hypotheses.md. This is a wider list, by the same rule (statistics.verdict): some of
its claims are not among the hypotheses and were put in numbers after the first runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from recipes.mini import plan, statistics
from recipes.mini.best import Study, first_and_last
from recipes.mini.verdicts import EARLY, END, NOT_RUN, Comparison, compare, counted, judged, signed

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "cannot be said"
ABOVE, NOT_BELOW, BELOW = {"better"}, {"better", "a tie"}, {"worse"}
"""Outcomes of a difference that agree with a claim."""
DECIDED = {"better", "worse", "a tie"}
ONE_TASK = (plan.ONE_TASK,)


@dataclass(frozen=True)
class Change:
    """A difference that is not one of accuracies between two methods."""

    what: str
    outcome: str
    difference: statistics.Estimate | None
    pairs: int

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.what}: {NOT_RUN}"
        word = {"better": "above 0", "worse": "below 0"}.get(self.outcome, self.outcome)
        return f"{self.what}: {signed(self.difference)}, {counted(self.pairs, 'run')}: {word}"


Evidence = tuple[Comparison | Change, set[str] | None]
"""A difference, and its outcomes that agree with the claim; None: it is shown, and decides nothing."""


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and the differences that speak of it here."""

    text: str
    place: str
    evidence: Callable[[Study], Sequence[Evidence]] = field(repr=False)
    remark: str = ""

    def judge(self, study: Study) -> tuple[str, tuple[str, ...]]:
        """The outcome, and what it stands on."""
        found = self.evidence(study)
        outcomes = [difference.outcome for difference, _ in found]
        grounds = tuple(str(difference) for difference, _ in found) + ((self.remark,) if self.remark else ())
        if all(outcome == NOT_RUN for outcome in outcomes):
            return NOT_RUN, grounds
        if all(agree is not None and difference.outcome in agree for difference, agree in found):
            return HOLDS, grounds
        refuted = any(agree is not None and difference.outcome in DECIDED - agree for difference, agree in found)
        return (FAILS if refuted else OPEN), grounds


def _fall(study: Study, method: str) -> Change:
    """How far the last checkpoint is from the one that validation chose."""
    by_judge = (study.scores(method, judge, END) for judge in ("last", "best"))
    what = f"{plan.METHODS[method].title}, last({END}) - its own best({END})"
    return Change(what, *judged(statistics.paired(*by_judge), plan.TASKS))


def _within(study: Study, method: str, metric: str, what: str) -> Change:
    """How a metric changes from the first steps of a run to the last."""
    changes: dict[str, list[float]] = {}
    for log in study.runs(method):
        ends = first_and_last(log, metric)
        if ends is not None:
            changes.setdefault(log.cell.task, []).append(ends[1] - ends[0])
    differences = {task: np.array(values) for task, values in changes.items()}
    return Change(
        f"{plan.METHODS[method].title}, {what}, last ten steps - first ten", *judged(differences, plan.TASKS)
    )


def growth(study: Study, method: str) -> dict[str, dict[int, float]]:
    """By task and seed, mean response length of the last steps over that of the first."""
    growth: dict[str, dict[int, float]] = {}
    for log in study.runs(method):
        ends = first_and_last(log, "response_length/mean")
        if ends is not None:
            growth.setdefault(log.cell.task, {})[log.cell.seed] = ends[1] / ends[0]
    return growth


def _longer(study: Study, one: str, other: str) -> Change:
    what = f"{plan.METHODS[one].title} - {plan.METHODS[other].title}, growth of responses"
    return Change(what, *judged(statistics.paired(growth(study, one), growth(study, other)), plan.TASKS))


def _on_one_task(study: Study, one: str, other: str, judge: str) -> Comparison:
    return compare(study, one, other, judge, END, ONE_TASK)


CLAIMS = (
    Claim(
        "SDPO improves faster than GRPO at first",
        "abstract; 1 h: +3.0",
        lambda study: [(compare(study, "sdpo", "grpo", "best", EARLY), ABOVE)],
    ),
    Claim(
        "SDPO collapses in prolonged training",
        "abstract",
        lambda study: [(_fall(study, "sdpo"), BELOW), (compare(study, "sdpo", "grpo", "last", END), BELOW)],
    ),
    Claim(
        "to distil what is already correct does harm",
        "abstract, Figure 1(b)",
        lambda study: [
            (_on_one_task(study, "sdpo_failed_only", "sdpo", "last"), ABOVE),
            (_on_one_task(study, "sdpo_failed_only", "sdpo_correct_only", "last"), ABOVE),
        ],
    ),
    Claim(
        "the self-teacher becomes less reliable: its entropy rises",
        "abstract, Figure 1(c)",
        lambda study: [(_within(study, "sdpo", "srpo/teacher_entropy_mean", "teacher entropy in nats"), ABOVE)],
    ),
    Claim(
        "SRPO has the early speed of SDPO",
        "abstract; 1 h: +2.1",
        lambda study: [(compare(study, "srpo", "sdpo", "best", EARLY), NOT_BELOW)],
    ),
    Claim(
        "SRPO has the stability of GRPO",
        "abstract",
        lambda study: [(compare(study, "srpo", "grpo", "last", END), NOT_BELOW)],
    ),
    Claim(
        "SRPO surpasses the peak of GRPO",
        "Table 1, 10 h: +3.4",
        lambda study: [(compare(study, "srpo", "grpo", "best", END), ABOVE)],
    ),
    Claim(
        "SRPO surpasses the peak of SDPO",
        "Table 1, 10 h: +6.3",
        lambda study: [(compare(study, "srpo", "sdpo", "best", END), ABOVE)],
    ),
    Claim(
        "entropy weights help",
        "Table 2, 10 h: +1.8",
        lambda study: [(_on_one_task(study, "srpo", "srpo_no_dw", "best"), ABOVE)],
    ),
    Claim(
        "routing beats mixing in the long run",
        "Table 2, 10 h: +5.1",
        lambda study: [(_on_one_task(study, "srpo", "advantage_mix", "best"), ABOVE)],
    ),
    Claim(
        "ever fewer samples are distilled",
        "Figure 5, from 0.40",
        lambda study: [(_within(study, "srpo", "srpo/frac_sdpo", "share distilled"), BELOW)],
    ),
    Claim(
        "responses of moderate length",
        "abstract, Figure 4(a)",
        lambda study: [(_longer(study, "srpo", "grpo"), None), (_longer(study, "srpo", "sdpo"), None)],
        remark='what "moderate" excludes is not said, so that no difference decides it',
    ),
)
NOT_MEASURED = (
    "steps become cheaper than GRPO's",
    "Figure 4(b): +17 %, then -17 %",
    "**not measured**",
    "two runs shared two cores, with other work beside them; [one step, idle](performance.md)",
)
"""The one claim of the abstract that these logs cannot speak of."""


def rows(study: Study) -> list[tuple[str, str, str, str]]:
    """Claim, place in the paper, outcome, and what it stands on; the cells of a table."""
    cells = []
    for claim in CLAIMS:
        outcome, grounds = claim.judge(study)
        cells.append((claim.text, claim.place, f"**{outcome}**", "<br>".join(grounds)))
    return [*cells, NOT_MEASURED]

"""The paper's claims, one by one, as far as runs of the study can say something of them.

What was to be decided stands in hypotheses.md. This is a wider list, by the same rule (statistics.verdict): some of
its claims are not among the hypotheses and were put in numbers after the first runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recipes.mini import plan, statistics
from recipes.mini.best import Study
from recipes.mini.verdicts import EARLY, END, NOT_RUN, Comparison, compare

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "cannot be said"
ABOVE, NOT_BELOW, BELOW = {"better"}, {"better", "a tie"}, {"worse"}
"""Outcomes of a difference that agree with a claim."""
DECIDED = {"better", "worse", "a tie"}
ONE_TASK = (plan.ONE_TASK,)


class Change(Comparison):
    """A difference that is not one of accuracies between methods."""

    @property
    def word(self) -> str:
        """On which side of 0 it is."""
        return {"better": "above 0", "worse": "below 0"}.get(self.outcome, self.outcome)


Measure = Callable[[Study], Comparison]
Evidence = tuple[Measure, set[str] | None]
"""A difference, and its outcomes that agree with the claim; None: it is shown, and decides nothing."""


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and the differences that speak of it here."""

    text: str
    place: str
    evidence: Sequence[Evidence]
    remark: str = ""

    def judge(self, study: Study) -> tuple[str, tuple[str, ...]]:
        """The outcome, and what it stands on."""
        found = [(measure(study), agree) for measure, agree in self.evidence]
        outcomes = [difference.outcome for difference, _ in found]
        grounds = tuple(str(difference) for difference, _ in found) + ((self.remark,) if self.remark else ())
        if all(outcome == NOT_RUN for outcome in outcomes):
            return NOT_RUN, grounds
        deciding = [(difference.outcome, agree) for difference, agree in found if agree is not None]
        if deciding and all(outcome in agree for outcome, agree in deciding):
            return HOLDS, grounds
        refuted = any(outcome in DECIDED - agree for outcome, agree in deciding)
        return (FAILS if refuted else OPEN), grounds


def _between(one: str, other: str, judge: str, budget: int, tasks: Sequence[str] = plan.TASKS) -> Measure:
    """Accuracy of one method against another's."""
    return lambda study: compare(study, one, other, judge, budget, tasks)


def _fall(method: str) -> Measure:
    """How far the last checkpoint is from the one that validation chose."""
    what = f"{plan.METHODS[method].title}, last({END}) - its own best({END})"

    def measure(study: Study) -> Comparison:
        last, best = (study.scores(method, judge, END) for judge in ("last", "best"))
        return Change.of(what, statistics.paired(last, best), unit="run")

    return measure


def _within(method: str, metric: str, called: str) -> Measure:
    """How a metric changes from the first steps of a run to the last."""
    what = f"{plan.METHODS[method].title}, {called}, last ten steps - first ten"

    def measure(study: Study) -> Comparison:
        changes = study.ends(method, metric, lambda first, last: last - first)
        differences = {task: np.array(list(by_seed.values())) for task, by_seed in changes.items()}
        return Change.of(what, differences, unit="run")

    return measure


def growth(study: Study, method: str) -> dict[str, dict[int, float]]:
    """By task and seed, mean response length of the last ten steps over that of the first ten."""
    return study.ends(method, "response_length/mean", lambda first, last: last / first)


def _longer(one: str, other: str) -> Measure:
    what = f"{plan.against(one, other)}, growth of responses"
    return lambda study: Change.of(what, statistics.paired(growth(study, one), growth(study, other)))


EARLY_STEPS, LATE_STEPS = (2, EARLY), (END - EARLY + 1, END)
"""First and last step of them; the very first is left out, since a process is slow in it."""


def _slower(one: str, other: str, timing: str, called: str, steps: tuple[int, int]) -> Measure:
    """By how much of it something takes longer."""
    what = "{}, seconds of {} / {}'s - 1, steps {} to {}".format(
        plan.METHODS[one].title, called, plan.METHODS[other].title, *steps
    )

    def measure(study: Study) -> Comparison:
        seconds, others = (study.seconds(method, timing, *steps).get(plan.ONE_TASK, {}) for method in (one, other))
        ratios = np.array([seconds[seed] / others[seed] - 1 for seed in seconds if seed in others])
        return Change.of(what, {plan.ONE_TASK: ratios} if len(ratios) else {}, ONE_TASK)

    return measure


CLAIMS = (
    Claim(
        "SDPO improves faster than GRPO at first",
        "abstract; 1 h: +3.0",
        [(_between("sdpo", "grpo", "best", EARLY), ABOVE)],
    ),
    Claim(
        "SDPO collapses in prolonged training",
        "abstract",
        [(_fall("sdpo"), BELOW), (_between("sdpo", "grpo", "last", END), BELOW)],
    ),
    Claim(
        "to distil what is already correct does harm",
        "abstract, Figure 1(b)",
        [
            (_between("sdpo_failed_only", "sdpo", "last", END, ONE_TASK), ABOVE),
            (_between("sdpo_failed_only", "sdpo_correct_only", "last", END, ONE_TASK), ABOVE),
        ],
    ),
    Claim(
        "the self-teacher becomes less reliable: its entropy rises",
        "abstract, Figure 1(c)",
        [(_within("sdpo", "srpo/teacher_entropy_mean", "teacher entropy in nats"), ABOVE)],
    ),
    Claim(
        "SRPO has the early speed of SDPO",
        "abstract; 1 h: +2.1",
        [(_between("srpo", "sdpo", "best", EARLY), NOT_BELOW)],
    ),
    Claim(
        "SRPO has the stability of GRPO",
        "abstract",
        [
            (_between("srpo", "grpo", "last", END), NOT_BELOW),
            (_between("srpo", "grpo", "last", plan.LONG_STEPS, ONE_TASK), NOT_BELOW),
        ],
    ),
    Claim(
        "SRPO surpasses the peak of GRPO",
        "Table 1, 10 h: +3.4",
        [(_between("srpo", "grpo", "best", END), ABOVE)],
    ),
    Claim(
        "SRPO surpasses the peak of SDPO",
        "Table 1, 10 h: +6.3",
        [(_between("srpo", "sdpo", "best", END), ABOVE)],
    ),
    Claim(
        "entropy weights help",
        "Table 2, 10 h: +1.8",
        [(_between("srpo", "srpo_no_dw", "best", END, ONE_TASK), ABOVE)],
    ),
    Claim(
        "routing beats mixing in the long run",
        "Table 2, 10 h: +5.1",
        [(_between("srpo", "advantage_mix", "best", END, ONE_TASK), ABOVE)],
    ),
    Claim(
        "ever fewer samples are distilled",
        "Figure 5, from 0.40",
        [(_within("srpo", "srpo/frac_sdpo", "share distilled"), BELOW)],
    ),
    Claim(
        "responses of moderate length",
        "abstract, Figure 4(a)",
        [(_longer("srpo", "grpo"), None), (_longer("srpo", "sdpo"), None)],
        remark='what "moderate" excludes is not said, so that no difference decides it',
    ),
    Claim(
        "steps become cheaper than GRPO's",
        "Figure 4(b): +17 %, then -17 %",
        [
            (_slower("srpo", "grpo", "timing_s/step", "a step", EARLY_STEPS), None),
            (_slower("srpo", "grpo", "timing_s/step", "a step", LATE_STEPS), BELOW),
            (_slower("srpo", "grpo", "timing_s/update_actor", "its update", EARLY_STEPS), None),
            (_slower("srpo", "grpo", "timing_s/update_actor", "its update", LATE_STEPS), None),
        ],
    ),
)


def rows(study: Study) -> list[tuple[str, str, str, str]]:
    """Claim, place in the paper, outcome, and what it stands on; the cells of a table."""
    cells = []
    for claim in CLAIMS:
        outcome, grounds = claim.judge(study)
        cells.append((claim.text, claim.place, f"**{outcome}**", "<br>".join(grounds)))
    return cells

"""Which runs the study consists of: methods, tasks, learning rates, seeds, steps. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GRID = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)
GRID_TASK, GRID_SEEDS = "sums4", (100, 101)
"""Learning rates are chosen with seeds that no comparison uses."""

SEEDS = (0, 1, 2, 3, 4)
MANY_SEEDS = tuple(range(10))
STEPS = 150
LONG_STEPS = 1500
BUDGETS = {"early": 20, "middle": 60, "end": STEPS}
"""Training steps at which methods are compared, fixed before any run: the small versions of 1 h, 5 h and 10 h."""

TASKS = ("sums4", "chain_sum", "rewriting", "desk")
MANY_SEEDS_TASK = LONG_TASK = ONE_TASK = "sums4"


@dataclass(frozen=True)
class Method:
    """A named configuration, possibly with overrides."""

    title: str
    config: str
    overrides: tuple[str, ...] = ()
    has_teacher: bool = True
    distils: bool = True
    """Compares distributions, so that it takes a support."""


METHODS = {
    "grpo": Method("GRPO", "grpo", has_teacher=False, distils=False),
    "sdpo": Method("SDPO", "sdpo"),
    "srpo": Method("SRPO", "srpo"),
    "srpo_no_dw": Method("SRPO without weights", "srpo_no_dw"),
    "advantage_mix": Method("Advantage Mix", "advantage_mix"),
    "handover": Method("hand-over", "srpo_handover"),
    "sdpo_correct_only": Method("SDPO, correct only", "sdpo_correct_only"),
    "sdpo_failed_only": Method("SDPO, failed only", "sdpo_failed_only"),
    "keep_negative": Method("SRPO, negatives kept", "srpo", ("srpo.routing=keep_negative",)),
    "fixed_negative": Method(
        "fixed negative advantage", "grpo", ("srpo.routing=fixed_negative",), has_teacher=False, distils=False
    ),
    "rlsd": Method("RLSD", "rlsd", distils=False),
    "sc_sdpo": Method("SC-SDPO", "sc_sdpo"),
    "anneal": Method("SRPO, annealed", "srpo_anneal"),
    "memory": Method("SRPO, success memory", "srpo_memory"),
}
MAIN = ("grpo", "sdpo", "srpo", "srpo_no_dw", "advantage_mix", "handover")
FURTHER = (
    "sdpo_correct_only",
    "sdpo_failed_only",
    "keep_negative",
    "fixed_negative",
    "rlsd",
    "sc_sdpo",
    "anneal",
    "memory",
)
LONG = ("grpo", "srpo", "sdpo", "handover")
CLOSE = ("grpo", "srpo", "handover")
"""Compared with twice the seeds."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    part: str
    task: str
    method: str
    learning_rate: float
    seed: int
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Of its log; the same run is not made twice for two parts."""
        return f"{self.task}-{self.method}-lr{self.learning_rate:g}-steps{self.steps}-seed{self.seed}"


def grid(methods: tuple[str, ...] = (*MAIN, *FURTHER)) -> Iterator[Cell]:
    """Every learning rate of every method, the main methods first."""
    for seed in GRID_SEEDS:
        for method in methods:
            for learning_rate in GRID:
                yield Cell("grid", GRID_TASK, method, learning_rate, seed)


def rates(method: str, best: dict[str, float]) -> tuple[float, ...]:
    """A method's own best learning rate, and SRPO's."""
    return tuple(dict.fromkeys((best[method], best["srpo"])))


def comparison(best: dict[str, float]) -> Iterator[Cell]:
    """Part A: the main methods on all tasks. Seed by seed, so that an unfinished part is a smaller study."""
    for which in (0, 1):
        for seed in SEEDS:
            for task in TASKS:
                for method in MAIN:
                    for learning_rate in rates(method, best)[which : which + 1]:
                        yield Cell("A", task, method, learning_rate, seed)
    for seed in MANY_SEEDS:
        for method in CLOSE:
            yield Cell("A", MANY_SEEDS_TASK, method, best[method], seed)


def further(best: dict[str, float]) -> Iterator[Cell]:
    """Part B: the other methods on one task."""
    for seed in SEEDS:
        for method in FURTHER:
            yield Cell("B", ONE_TASK, method, best[method], seed)


def long_run(best: dict[str, float]) -> Iterator[Cell]:
    """Part C: ten times as long."""
    for seed in SEEDS:
        for method in LONG:
            yield Cell("C", LONG_TASK, method, best[method], seed, LONG_STEPS)

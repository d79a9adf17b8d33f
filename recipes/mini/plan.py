"""Which runs the study consists of: methods, tasks, learning rates, seeds, steps. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from srpo_verl.config.methods import title_of

PROMPTS = 8
"""Of a step; each has the configurations' 8 rollouts."""

GRID = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)
GRID_TASK, GRID_SEEDS, GRID_STEPS = "sums4", (100,), 100
"""Learning rates are chosen with seeds that no comparison uses."""

SEEDS = (0, 1, 2, 3, 4)
FURTHER_SEEDS = (0, 1, 2)
LONG_SEEDS = (0, 1)
THIRD_LONG_SEED = 2
MORE_SEEDS = (5, 6, 7, 8, 9)
STEPS = 150
LONG_STEPS = 1500
TEST_EVERY, LONG_TEST_EVERY = 10, 30
BUDGETS = {"early": 20, "middle": 60, "end": STEPS}
"""Training steps at which methods are compared, fixed before any run: the small versions of 1 h, 5 h and 10 h."""

TASKS = ("sums4", "chain_sum", "rewriting", "desk")
ONE_TASK = "sums4"
"""Where a part has one task."""


@dataclass(frozen=True)
class Method:
    """A named configuration, possibly with overrides."""

    config: str
    overrides: tuple[str, ...] = ()
    title: str = ""
    """As people call it; the configuration's, unless overrides make another method of it."""
    has_teacher: bool = True
    distils: bool = True
    """Compares distributions, so that it takes a support."""
    rate_of: str | None = None
    """The method whose learning rate it takes; None: it has a grid of its own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or title_of(self.config))


FEW_QUESTIONS = 256
"""So that each comes four to five times in a run; of all 4,096 none comes twice."""


def _few(config: str) -> Method:
    title = f"{title_of(config)}, {FEW_QUESTIONS} questions"
    return Method(config, (f"data.train_max_samples={FEW_QUESTIONS}",), title=title, rate_of="srpo")


METHODS = {
    "grpo": Method("grpo", has_teacher=False, distils=False),
    "sdpo": Method("sdpo"),
    "srpo": Method("srpo"),
    "handover": Method("srpo_handover"),
    "srpo_no_dw": Method("srpo_no_dw", rate_of="srpo"),
    "advantage_mix": Method("advantage_mix", rate_of="srpo"),
    "handover_blind": Method(
        "srpo_handover",
        ("srpo.demonstration.show=false",),
        title=f"{title_of('srpo_handover')}, teacher without sibling",
        rate_of="handover",
    ),
    "sdpo_correct_only": Method("sdpo_correct_only", rate_of="sdpo"),
    "sdpo_failed_only": Method("sdpo_failed_only", rate_of="sdpo"),
    "keep_negative": Method("srpo", ("srpo.routing=keep_negative",), title=title_of("keep_negative"), rate_of="srpo"),
    "fixed_negative": Method(
        "grpo",
        ("srpo.routing=fixed_negative",),
        title=title_of("fixed_negative"),
        has_teacher=False,
        distils=False,
        rate_of="grpo",
    ),
    "rlsd": Method("rlsd", distils=False, rate_of="grpo"),
    "sc_sdpo": Method("sc_sdpo", rate_of="sdpo"),
    "anneal": Method("srpo_anneal", rate_of="srpo"),
    "memory": Method("srpo_memory", rate_of="srpo"),
    "srpo_few": _few("srpo"),
    "memory_few": _few("srpo_memory"),
}
MAIN = ("grpo", "sdpo", "srpo", "handover")
"""On all tasks, each with a grid of its own."""
KEPT = "keep_negative"
EVERYWHERE = (*MAIN, KEPT)
"""What every task has runs of, at least five; the last at SRPO's rate."""
ABLATIONS = ("srpo_no_dw", "advantage_mix", "handover_blind")
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
LONG_VARIANTS = ("anneal", KEPT)
"""Of SRPO: what might keep it from falling late."""
ALL_LONG = (*LONG, *LONG_VARIANTS)
FEW = ("srpo_few", "memory_few")
CLOSE = ("grpo", "srpo", "handover")
"""Compared with twice the seeds."""
SRPO_AND_GRPO = ("srpo", "grpo")
ALONE = "F"
"""The part whose runs are made one at a time, on a machine without other work. They are part A's but for their times,
so that their logs stand apart."""


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


def against(one: str, other: str) -> str:
    """What a difference of two methods is called."""
    return f"{METHODS[one].title} - {METHODS[other].title}"


Rates = Mapping[str, float]
"""Learning rate by method, of the methods that have a grid."""


def rate(method: str, best: Rates) -> float:
    """The learning rate of a method: its own, or its nearest relative's."""
    return best[METHODS[method].rate_of or method]


def grid(best: Rates) -> Iterator[Cell]:
    """Every learning rate of the methods that have a grid."""
    for seed in GRID_SEEDS:
        for learning_rate in GRID:
            for method in MAIN:
                yield Cell("grid", GRID_TASK, method, learning_rate, seed, GRID_STEPS)


def comparison(best: Rates) -> Iterator[Cell]:
    """Part A. Seed by seed, so that an unfinished part is a smaller study."""
    for seed in SEEDS:
        for task in TASKS:
            for method in (*MAIN, *ABLATIONS) if task == ONE_TASK else MAIN:
                yield Cell("A", task, method, rate(method, best), seed)


def at_srpos_rate(best: Rates) -> Iterator[Cell]:
    """Part A again at SRPO's learning rate, on one task: the methods whose own is another."""
    for seed in FURTHER_SEEDS:
        for method in MAIN:
            if best[method] != best["srpo"]:
                yield Cell("A", ONE_TASK, method, best["srpo"], seed)


def further(best: Rates) -> Iterator[Cell]:
    """Part B: the other methods."""
    for seed in FURTHER_SEEDS:
        for method in FURTHER:
            yield Cell("B", ONE_TASK, method, rate(method, best), seed)


def long_run(best: Rates) -> Iterator[Cell]:
    """Part C: ten times as long."""
    for seed in LONG_SEEDS:
        for method in LONG:
            yield Cell("C", ONE_TASK, method, rate(method, best), seed, LONG_STEPS)


def more_seeds(best: Rates) -> Iterator[Cell]:
    """Part D: twice the seeds where methods are close."""
    for seed in MORE_SEEDS:
        for method in CLOSE:
            yield Cell("D", ONE_TASK, method, rate(method, best), seed)


def added(best: Rates) -> Iterator[Cell]:
    """Part E, added after A to D: a success memory that is asked, twice the seeds for A's ablations, and, since a long
    run of SRPO fell, a third seed of it and of GRPO."""
    for seed in FURTHER_SEEDS:
        for method in FEW:
            yield Cell("E", ONE_TASK, method, rate(method, best), seed)
    for seed in MORE_SEEDS:
        for method in ABLATIONS:
            yield Cell("E", ONE_TASK, method, rate(method, best), seed)
    for method in SRPO_AND_GRPO:
        yield Cell("E", ONE_TASK, method, rate(method, best), THIRD_LONG_SEED, LONG_STEPS)


def timed(best: Rates) -> Iterator[Cell]:
    """Part F, added for the paper's Figure 4(b): runs of part A once more, for what a step takes."""
    for seed in FURTHER_SEEDS:
        for method in SRPO_AND_GRPO:
            yield Cell(ALONE, ONE_TASK, method, rate(method, best), seed)


def long_variants(best: Rates) -> Iterator[Cell]:
    """Part G, added when every long run of SRPO had fallen: variants of it, as long."""
    for seed in FURTHER_SEEDS:
        for method in LONG_VARIANTS:
            yield Cell("G", ONE_TASK, method, rate(method, best), seed, LONG_STEPS)


def negatives_kept(best: Rates) -> Iterator[Cell]:
    """Part H, added with G: the variant that keeps negative advantages, wherever SRPO was run."""
    made = {(cell.task, cell.seed) for cell in further(best) if cell.method == KEPT}
    for seed in (*SEEDS, *MORE_SEEDS):
        for task in TASKS if seed in SEEDS else (ONE_TASK,):
            if (task, seed) not in made:
                yield Cell("H", task, KEPT, rate(KEPT, best), seed)


def part_a(best: Rates) -> Iterator[Cell]:
    """Part A, with its repetition at SRPO's learning rate."""
    yield from comparison(best)
    yield from at_srpos_rate(best)


PARTS: dict[str, Callable[[Rates], Iterator[Cell]]] = {
    "grid": grid,
    "A": part_a,
    "B": further,
    "C": long_run,
    "D": more_seeds,
    "E": added,
    ALONE: timed,
    "G": long_variants,
    "H": negatives_kept,
}
"""In the order of running; all but the grid need its rates."""

"""The runs behind the paper's tables and figures. A run that several of them need is one cell, made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ENTRY = ["python", "-m", "verl.trainer.main_ppo", "--config-path", "pkg://srpo_verl.config", "--config-name"]
"""What every run of this package starts with; the name of its configuration and Hydra overrides follow."""

BENCHMARKS = ("chemistry", "physics", "biology", "materials", "tooluse")
MODELS = ("qwen3_8b", "qwen3_4b")
FIRST_SEED = 42
"""`data.seed` and `rollout.seed` of the configurations; further seeds count on from here."""


UNTRAINED = ("trainer.experiment_name=base", "trainer.val_only=true", "trainer.resume_mode=disable")
"""The method "base": the model's validation before training."""


@dataclass(frozen=True)
class Cell:
    """One run: a method (a launcher of recipes/paper), a model, a benchmark and a seed."""

    method: str
    model: str
    benchmark: str
    seed: int = FIRST_SEED

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.method}-{self.model}-{self.benchmark}-seed{self.seed}"


SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # best avg@16 in 1 h, 5 h and 10 h; "base" is the model before training
    "table 1": (("base", "grpo", "sdpo", "srpo"), MODELS),
    # ablation
    "table 2": (("srpo", "srpo_no_dw", "advantage_mix"), ("qwen3_8b",)),
    # (b) SDPO on which rollouts, (c) the self-teacher of SDPO over training
    "figure 1": (("sdpo", "sdpo_correct_only", "sdpo_failed_only"), ("qwen3_8b",)),
    # accuracy over hours
    "figure 3": (("grpo", "sdpo", "srpo"), MODELS),
    # response length, seconds per step
    "figure 4": (("grpo", "sdpo", "srpo"), ("qwen3_8b",)),
    # routing over training
    "figure 5": (("srpo",), ("qwen3_8b",)),
}
"""Methods and models of each table and figure; all of them on all benchmarks."""


def select(
    sets: Iterable[str],
    *,
    methods: Sequence[str] = (),
    models: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    seeds: int = 1,
) -> list[Cell]:
    """The cells of some tables and figures, each once, in the order of the tables; no filter means everything.

    All runs of the first seed come before those of the second, so that a table is filled once before it is repeated.
    """
    kept = {
        Cell(method, model, benchmark): None
        for name in sets
        for model in SETS[name][1]
        for benchmark in BENCHMARKS
        for method in SETS[name][0]
        if _keeps(methods, method) and _keeps(models, model) and _keeps(benchmarks, benchmark)
    }
    return [
        Cell(cell.method, cell.model, cell.benchmark, FIRST_SEED + repetition)
        for repetition in range(seeds)
        for cell in kept
    ]


def _keeps(wanted: Sequence[str], value: str) -> bool:
    return not wanted or value in wanted


def command_of(method: str, settings: Sequence[str]) -> list[str]:
    """The command of a method's run with these settings; recipes/paper has the same, to be started by hand."""
    return [*ENTRY, "grpo", *UNTRAINED, *settings] if method == "base" else [*ENTRY, method, *settings]


def cell_settings(cell: Cell, folder: Path, data: Path, extra: Sequence[str] = ()) -> list[str]:
    """What a cell sets. `folder`: of the run. `data`: root of the benchmarks' parquet files."""
    return [
        f"base_model={cell.model}",
        f"benchmark={cell.benchmark}",
        f"data.root={data}",
        f"data.seed={cell.seed}",
        f"actor_rollout_ref.rollout.seed={cell.seed}",
        f"trainer.default_local_dir={folder}/checkpoints",
        f"hydra.run.dir={folder}/hydra",
        *extra,
    ]

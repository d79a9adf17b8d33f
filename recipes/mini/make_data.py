"""Questions of the mini suite as veRL parquet: ``python -m recipes.mini.make_data --task chain_sum --out DIR``."""

import argparse
from pathlib import Path

import pandas as pd

from recipes.mini.task import Task
from recipes.mini.tasks import TASKS
from recipes.mini.verifier import TEST

COUNTS = {"train": 4096, "validation": 128, "test": 256}
"""Questions of each split."""


def build_rows(task: Task, split: str, count: int, seed: int = 0) -> list[dict]:
    """Rows in the columns that veRL's dataset and reward manager read."""
    return [
        {
            "data_source": task.data_source + (TEST if split == "test" else ""),
            "prompt": task.messages(question.text),
            "ability": task.name,
            "reward_model": {"style": "rule", "ground_truth": question.ground_truth},
            "extra_info": {"index": index, "split": split},
        }
        for index, question in enumerate(task.questions(split, count, seed))
    ]


def make_data(task: Task, out: Path, *, seed: int = 0, counts: dict[str, int] | None = None) -> None:
    """Writes one parquet file per split, train.parquet and so on."""
    out.mkdir(parents=True, exist_ok=True)
    for split, count in (counts or COUNTS).items():
        pd.DataFrame(build_rows(task, split, count, seed)).to_parquet(out / f"{split}.parquet", index=False)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the parquet files")
    parser.add_argument("--seed", type=int, default=0)
    for split, count in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"number of {split} questions")
    arguments = parser.parse_args(argv)
    counts = {split: getattr(arguments, split) for split in COUNTS}
    make_data(TASKS[arguments.task], arguments.out, seed=arguments.seed, counts=counts)
    print(f"{arguments.out}: " + ", ".join(f"{count} {split} questions" for split, count in counts.items()))


if __name__ == "__main__":
    main()

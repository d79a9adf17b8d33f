"""Questions of the quickstart as veRL parquet: ``python -m recipes.quickstart.make_data --out DIR``.

Training questions come from the split kept for reinforcement learning and test questions from the held-out one, so
neither was seen in the warm-up; see `recipes.quickstart.task.split_of`.
"""

import argparse
from pathlib import Path

import pandas as pd

from recipes.quickstart import task


def build_rows(split: str, count: int, seed: int = 0, products: int = task.PRODUCTS) -> list[dict]:
    """Rows in the columns that veRL's dataset and reward manager read."""
    return [
        {
            "data_source": task.DATA_SOURCE,
            "prompt": task.messages(question),
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": task.answer(question)},
            "extra_info": {"index": index, "split": split},
        }
        for index, question in enumerate(task.sample_questions(split, count, seed, products))
    ]


def make_data(out: Path, *, train: int = 4096, test: int = 128, seed: int = 0, products: int = task.PRODUCTS) -> None:
    """Writes train.parquet and test.parquet."""
    out.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        pd.DataFrame(build_rows(split, count, seed, products)).to_parquet(out / f"{split}.parquet", index=False)
    print(f"{out}: {train} training and {test} held-out questions")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of train.parquet and test.parquet")
    parser.add_argument("--train", type=int, default=4096, help="number of training questions")
    parser.add_argument("--test", type=int, default=128, help="number of held-out questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--products", type=int, default=task.PRODUCTS, help="products in a question; 4 is harder")
    arguments = parser.parse_args(argv)
    make_data(
        arguments.out, train=arguments.train, test=arguments.test, seed=arguments.seed, products=arguments.products
    )


if __name__ == "__main__":
    main()

"""Time of the update phase, teacher pass included, against GRPO: ``python -m scripts.bench_step --check``.

The shipped worker and stock veRL's run the same rollouts in one process, in turn; ratios are of the same round. Then
two ranks of one thread each, with the failures spread evenly and with all of them on one rank. Meant for an idle
machine. docs/performance/columns.md says what the columns are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from scripts.bench.spread import of_the_same_round, spread
from scripts.bench.update_rounds import (
    BALANCED,
    FORWARD,
    GROUP,
    GRPO,
    ONE_SIDED,
    STOCK,
    Sizes,
    make_model,
    one_rank,
    two_ranks,
)
from scripts.outside_ray import run_ranks

LIMITS = {"srpo 0": 1.02, "srpo 0.4": 1.25, ONE_SIDED: 1.15}
"""Largest ratio: to our GRPO's update; the last one to the balanced teacher phase."""
PREDICTION_LIMIT = 0.10
"""Largest relative distance of an update with a teacher from what its share of teacher tokens predicts."""
TWO_RANKS_SHARE = 0.4
COLUMNS = ["response", "variant", "seconds", "to_grpo", "low", "high", "to_stock", "predicted", "off"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 1: --check, and a limit is missed."""
    args = _parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(Path(scratch) / "model", args.vocabulary, args.hidden, args.layers)
        for response in args.responses:
            measured += summarize(response, _rounds(args, model, response, 1), args.shares)
        longest = max(args.responses)
        measured += summarize_ranks(longest, _rounds(args, model, longest, 2))
    rows = pd.DataFrame(measured, columns=COLUMNS)
    rows.to_csv(args.out / "bench_step.csv", index=False)
    _draw(rows, args.out / "bench_step.png")
    print(rows.to_string(index=False, na_rep="", float_format="{:.3f}".format))
    missed = violations(measured)
    print(*(missed or ["every limit holds"]), sep="\n")
    return 1 if args.check and missed else 0


def _rounds(args: argparse.Namespace, model: Path, response: int, world_size: int) -> dict[str, list[float]]:
    """Seconds of every round by variant, of ranks in processes of their own."""
    answer = model.parent / "answer.json"
    sizes = Sizes(args.rows, response, args.micro_batch, args.top_k, args.vocabulary)
    shares = args.shares if world_size == 1 else TWO_RANKS_SHARE
    run_ranks(
        one_rank if world_size == 1 else two_ranks,
        (model, sizes, shares, args.repeats, answer),
        world_size=world_size,
        timeout=args.timeout,
        threads=max(1, args.threads // world_size),
    )
    return json.loads(answer.read_text())


def summarize(response: int, times: Mapping[str, list[float]], shares: Sequence[float]) -> list[dict[str, Any]]:
    """One row per variant: median seconds, and the median of the ratios within a round with its 20/80 % spread."""
    rows = []
    prediction = {f"srpo {share:g}": share for share in shares}
    for variant, seconds in times.items():
        row = _row(response, variant, seconds, times[GRPO])
        row["to_stock"] = statistics.median(of_the_same_round(seconds, times[STOCK]))
        if prediction.get(variant):
            forward = statistics.median(of_the_same_round(times[FORWARD], times[GRPO]))
            row["predicted"] = 1.0 + prediction[variant] * forward
            row["off"] = row["to_grpo"] / row["predicted"] - 1.0
        rows.append(row)
    return rows


def summarize_ranks(response: int, times: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """The teacher phase of two ranks; ratios are to the balanced one."""
    return [_row(response, name, seconds, times[BALANCED]) for name, seconds in times.items()]


def _row(response: int, variant: str, seconds: list[float], reference: list[float]) -> dict[str, Any]:
    ratio, low, high = spread(of_the_same_round(seconds, reference))
    median = statistics.median(seconds)
    return {"response": response, "variant": variant, "seconds": median, "to_grpo": ratio, "low": low, "high": high}


def violations(rows: list[dict[str, Any]]) -> list[str]:
    """A line for every limit that is missed."""
    lines = [
        f"missed: {row['variant']} at {row['response']} tokens takes {row['to_grpo']:.3f}, limit {limit}"
        for row in rows
        if (limit := LIMITS.get(row["variant"])) is not None and row["to_grpo"] > limit
    ]
    return lines + [
        f"missed: {row['variant']} at {row['response']} tokens is {row['off']:+.0%} off its prediction"
        for row in rows
        if "off" in row and abs(row["off"]) > PREDICTION_LIMIT
    ]


def _draw(rows: pd.DataFrame, path: Path) -> None:
    """Ratio to GRPO over the share of distilled rows, measured and predicted, per response length."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for response, mine in rows[rows.variant.str.startswith("srpo ")].groupby("response"):
        shares = mine.variant.str.split().str[1].astype(float)
        errors = [(mine.to_grpo - mine.low).clip(lower=0.0), (mine.high - mine.to_grpo).clip(lower=0.0)]
        line = axes.errorbar(shares, mine.to_grpo, errors, marker="o", capsize=3, label=f"{response} response tokens")
        predicted = mine.predicted.fillna(1.0)
        axes.plot(shares, predicted, linestyle="--", color=line[0].get_color(), alpha=0.6)
    axes.axhline(1.0, color="#7f7f7f", linewidth=0.8)
    axes.set_xlabel("share of distilled rows (dashed: predicted by teacher tokens)")
    axes.set_ylabel("update phase, relative to GRPO")
    axes.legend()
    figure.savefig(path, dpi=150)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_step", description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, nargs="+", default=[64, 256], help="response lengths in tokens")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.2, 0.4, 1.0], help="distilled rows")
    parser.add_argument("--rows", type=int, default=10, help=f"rows per rank, a multiple of {GROUP}")
    parser.add_argument("--micro-batch", type=int, default=2, help="rows per micro-batch")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--hidden", type=int, default=320, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one case")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_step"))
    parser.add_argument("--check", action="store_true", help="exit 1 if a limit is missed")
    args = parser.parse_args(arguments)
    if args.rows % GROUP or args.hidden % 64:
        parser.error(f"--rows must be a multiple of {GROUP} and --hidden of 64, got {args.rows} and {args.hidden}")
    if args.rows % args.micro_batch:
        parser.error(f"--rows {args.rows} must be a multiple of --micro-batch {args.micro_batch}")
    return args


if __name__ == "__main__":
    sys.exit(main())

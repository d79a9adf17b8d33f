"""Time of the update phase, teacher pass included, against GRPO: ``python -m scripts.bench_step --check``.

The shipped worker and stock veRL's run the same rollouts in one process, in turn; ratios are of the same round. Then
two ranks of one thread each, with the failures spread evenly and with all of them on one rank. Meant for an idle
machine. docs/performance.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from scripts.bench.step import EVERY, GROUP, Sizes, make_model, one_rank, rank_environment, two_ranks

STOCK, GRPO, FORWARD = "stock grpo", "grpo", "forward of all teacher tokens"
LIMITS = {"srpo 0": 1.02, "srpo 0.4": 1.25, "all on one rank": 1.15}
"""Largest ratio: to our GRPO's update; the last one to the balanced teacher phase."""
PREDICTION_LIMIT = 0.10
"""Largest relative distance of an update with a teacher from what its share of teacher tokens predicts."""
COLUMNS = ["response", "variant", "seconds", "to_grpo", "low", "high", "to_stock", "to_every", "predicted", "off"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 1: --check, and a limit is missed."""
    args = _parse(arguments)
    if args.rank is not None:  # a process of the two-rank case
        return _rank_main(args)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(Path(scratch) / "model", args.vocabulary, args.hidden, args.layers)
        for response in args.responses:
            answer = _run(args, model, response, world_size=1)
            rows += summarize(response, answer, args.shares)
        spread = _run(args, model, max(args.responses), world_size=2)
    rows += summarize_ranks(max(args.responses), spread)

    with (args.out / "bench_step.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    _draw(rows, args.out / "bench_step.png")
    for row in [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]:
        print(*(f"{_shown(row.get(column)):{36 if column == 'variant' else 9}}" for column in COLUMNS))
    missed = violations(rows)
    print(*(missed or ["every limit holds"]), sep="\n")
    return 1 if args.check and missed else 0


def summarize(response: int, times: dict[str, list[float]], shares: Sequence[float]) -> list[dict[str, Any]]:
    """One row per variant: median seconds, and the median of the ratios within a round with its 20/80 % spread."""
    rows = []
    prediction = {f"srpo {share:g}": share for share in shares}
    for variant, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[GRPO], strict=True)]
        row = _row(response, variant, seconds, ratios)
        for column, other in (("to_stock", STOCK), ("to_every", EVERY)):
            row[column] = statistics.median(a / b for a, b in zip(seconds, times[other], strict=True))
        if prediction.get(variant):
            row["predicted"] = statistics.median(
                1.0 + prediction[variant] * forward / update
                for forward, update in zip(times[FORWARD], times[GRPO], strict=True)
            )
            row["off"] = row["to_grpo"] / row["predicted"] - 1.0
        rows.append(row)
    return rows


def summarize_ranks(response: int, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The teacher phase of two ranks; ratios are to the balanced one."""
    return [
        _row(response, name, seconds, [a / b for a, b in zip(seconds, times["balanced"], strict=True)])
        for name, seconds in times.items()
    ]


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


def _row(response: int, variant: str, seconds: list[float], ratios: list[float]) -> dict[str, Any]:
    ordered = sorted(ratios)
    return {
        "response": response,
        "variant": variant,
        "seconds": statistics.median(seconds),
        "to_grpo": statistics.median(ratios),
        "low": ordered[round(0.2 * (len(ordered) - 1))],
        "high": ordered[round(0.8 * (len(ordered) - 1))],
    }


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _run(args: argparse.Namespace, model: Path, response: int, world_size: int) -> dict[str, list[float]]:
    """Run the ranks as processes; the first one's answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answer = model.parent / f"answer_{response}_{world_size}.json"
    command = [sys.executable, "-m", "scripts.bench_step", *args.given, "--model", str(model), "--answer", str(answer)]
    command += ["--response", str(response), "--world-size", str(world_size), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, args.threads // world_size))}
    ranks = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(world_size)]
    try:
        codes = [process.wait(timeout=args.timeout) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    if any(codes):
        raise RuntimeError(f"ranks of {world_size} at {response} tokens ended with {codes}; see their output above")
    return json.loads(answer.read_text())


def _rank_main(args: argparse.Namespace) -> int:
    import torch

    rank_environment(args.rank, args.world_size, args.port, max(1, args.threads // args.world_size))
    sizes = Sizes(args.rows, args.response, args.micro_batch, args.top_k, args.vocabulary)
    report = (lambda line: print(line, file=sys.stderr, flush=True)) if args.rank == 0 else (lambda line: None)
    if args.world_size == 1:
        times = one_rank(args.model, sizes, args.shares, args.repeats, report)
    else:
        times = two_ranks(args.model, sizes, 0.4, args.repeats, args.rank, report)
    if args.rank == 0:
        args.answer.write_text(json.dumps(times))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 0


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratio to GRPO over the share of distilled rows, measured and predicted, per response length."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for response in dict.fromkeys(row["response"] for row in rows):
        mine = [row for row in rows if row["response"] == response and row["variant"].startswith("srpo ")]
        shares = [float(row["variant"].split()[1]) for row in mine]
        ratios = [row["to_grpo"] for row in mine]
        errors = [
            [max(0.0, row["to_grpo"] - row["low"]) for row in mine],
            [max(0.0, row["high"] - row["to_grpo"]) for row in mine],
        ]
        line = axes.errorbar(shares, ratios, errors, marker="o", capsize=3, label=f"{response} response tokens")
        predicted = [row.get("predicted", 1.0) for row in mine]
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
    for name, kind in (("rank", int), ("world-size", int), ("port", int), ("response", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    for name in ("model", "answer"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.given = list(sys.argv[1:] if arguments is None else arguments)
    if args.rows % GROUP or args.hidden % 64:
        parser.error(f"--rows must be a multiple of {GROUP} and --hidden of 64, got {args.rows} and {args.hidden}")
    if args.rows % args.micro_batch:
        parser.error(f"--rows {args.rows} must be a multiple of --micro-batch {args.micro_batch}")
    return args


if __name__ == "__main__":
    sys.exit(main())

"""Time, memory and errors of the functions over logits: ``python -m scripts.bench_kernels --check``.

Every case (dtype, number of tokens) is measured in processes of its own, one after the other: peak memory in one
process per implementation, then the times of all of them in rounds in one process, so that ratios are of the same
round. Meant for an idle machine. docs/performance/columns.md says what the columns are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from scripts.bench.implementations import applicable, trl_version
from scripts.bench.kernel_figure import draw
from scripts.bench.kernel_rows import (
    COLUMNS,
    implementations_table,
    judge,
    make_rows,
    phases_table,
    verdicts_table,
)
from scripts.bench.limits import limits_for, processor
from scripts.bench.time_and_memory import Case, CaseFailed, Times, in_a_process, peak_memory, times

BUSY = 0.5
"""Load average at the start from which on timings are not to be trusted."""
USABLE_MEMORY = 0.85
"""Share of the memory that is free at the start of a case that it may take."""

NotRun = dict[tuple[str, int, str], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 1: --check, and a limit is missed."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    for line in describe(args):
        print(line)
    measured: list[dict[str, Any]] = []
    not_run: NotRun = {}
    rows = pd.DataFrame(measured, columns=COLUMNS)
    for dtype in args.dtypes:
        for answer in measure(args, dtype, not_run):
            measured += make_rows(*answer)
            rows = pd.DataFrame(measured, columns=COLUMNS)
            rows.to_csv(args.out / "kernels.csv", index=False, float_format="%.6g")
    verdicts = judge(rows, limits_for(args.device))
    report = [phases_table(rows), implementations_table(rows, not_run), verdicts_table(verdicts)]
    print("\n" + "\n\n".join(report))
    if measured:
        draw(rows, args.figure or args.out / "kernels.png")
    missed = [verdict for verdict in verdicts if not verdict.holds and _asked_for(verdict.name, args.dtypes)]
    for verdict in missed:
        print(f"missed: {verdict.name} is {verdict.worst}, at most {verdict.limit} ({verdict.where})", file=sys.stderr)
    return 1 if args.check and missed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 2048], metavar="N")
    parser.add_argument("--vocab", type=int, default=151_936, metavar="V")
    parser.add_argument("--support", type=int, default=100, metavar="K")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--threads", type=int, default=2, help="torch's threads on the CPU")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of every case")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--with-trl",
        action=argparse.BooleanOptionalAction,
        default=trl_version() is not None,
        help="compare with trl; left out: if it is installed",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_kernels"), help="of kernels.csv")
    parser.add_argument("--figure", type=Path, help="file of the figure; left out: kernels.png in --out")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    args = parser.parse_args(arguments)
    args.tokens = sorted(set(args.tokens))
    for name, value in (
        ("tokens", args.tokens[0]),
        *((n, getattr(args, n)) for n in ("support", "threads", "repeats")),
    ):
        if value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if args.support >= args.vocab:
        parser.error(f"--support must be smaller than --vocab {args.vocab}, got {args.support}")
    if args.with_trl and trl_version() is None:
        parser.error("--with-trl: trl is not installed, see docs/performance/columns.md")
    return args


def _asked_for(limit: str, dtypes: Sequence[str]) -> bool:
    return not limit.startswith("gradient error") or limit.split(", ")[1] in dtypes


def describe(args: argparse.Namespace) -> Iterator[str]:
    """What runs where."""
    load, trl = psutil.getloadavg()[0], trl_version()
    device = torch.cuda.get_device_name() if args.device == "cuda" else processor("model name")
    libraries = f"torch {torch.__version__}" + (f", trl {trl}" if args.with_trl else "")
    yield f"{device}, {args.threads} threads; {libraries}; load average {load:.2f}"
    yield f"V = {args.vocab}, K = {args.support}, {args.repeats} rounds; median (20th to 80th percentile)"
    if not args.with_trl:
        yield f"trl: not run, {'not installed' if trl is None else 'not wanted'}"
    if args.device == "cpu" and load > BUSY:
        print(f"the machine is busy (load average {load:.2f}): timings will be off", file=sys.stderr)


def measure(args: argparse.Namespace, dtype: str, not_run: NotRun) -> Iterator[tuple[Case, Times, dict[str, int]]]:
    """(case, its times, peak bytes by implementation) from few tokens to many."""
    per_token: dict[str, float] = {}
    sizes = args.vocab, args.support, args.threads, args.repeats, args.tokens[0]
    for tokens in args.tokens:
        case = Case(args.device, dtype, tokens, *sizes)
        names, extra = applicable(args.with_trl, dtype), dict[str, int]()
        for name in [name for name in names if name != "logsumexp"]:
            try:
                extra[name] = _peak(case, name, per_token.get(name, 0.0))
                per_token[name] = extra[name] / tokens
            except CaseFailed as error:
                not_run[dtype, tokens, name] = str(error)
                names.remove(name)
        print(f"{dtype}, N = {tokens}: times of {len(names)} implementations", file=sys.stderr)
        try:
            if "srpo" not in names:
                raise CaseFailed(not_run[dtype, tokens, "srpo"])
            answer = in_a_process(times, case, names)
        except CaseFailed as error:
            not_run.update({(dtype, tokens, name): str(error) for name in names})
            continue
        not_run.update({(dtype, tokens, name): reason for name, reason in answer.not_run.items()})
        yield case, answer, extra


def _peak(case: Case, name: str, per_token: float) -> int:
    """Peak bytes of an implementation; CaseFailed says why they are not known."""
    if reason := _does_not_fit(case, per_token):
        raise CaseFailed(reason)
    print(f"{case.dtype}, N = {case.tokens}: memory of {name}", file=sys.stderr)
    return in_a_process(peak_memory, case, [name])


def _does_not_fit(case: Case, extra_per_token: float) -> str | None:
    """A reason if the inputs, the gradient and what the last case predicts exceed the free memory; else None."""
    needed, free = 3 * case.logits_bytes + case.tokens * extra_per_token, psutil.virtual_memory().available
    if case.device != "cpu" or needed <= USABLE_MEMORY * free:
        return None
    return f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


if __name__ == "__main__":
    sys.exit(main())

"""Time, memory and errors of the functions over logits: ``python -m scripts.bench_kernels --check``.

Every case (dtype, number of tokens) is measured in processes of its own, one after the other: peak memory in one
process per implementation, then the times of all of them in rounds in one process, so that ratios are of the same
round. Meant for an idle machine. docs/performance/columns.md says what the columns are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from scripts.bench.implementations import applicable, trl_version
from scripts.bench.kernel_figure import draw
from scripts.bench.kernel_rows import COLUMNS, SHOWN, judge, make_rows
from scripts.bench.limits import limits_for, processor
from scripts.bench.time_and_memory import Case, CaseFailed, Times, in_a_process, peak_memory, times

DTYPES = ("float32", "bfloat16", "float16")
BUSY = 0.5
"""Load average at the start from which on timings are not to be trusted."""
OUR_TENSORS, OTHER_TENSORS = 4, 7
"""As large as the logits in fp32: what SRPO's functions and what others have at once, inputs and gradient included."""

NotRun = dict[tuple[str, int, str], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 1: --check, and a limit is missed."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    describe(args)
    measured: list[dict[str, Any]] = []
    not_run: NotRun = {}
    rows = pd.DataFrame(measured, columns=COLUMNS)
    for dtype in args.dtypes:
        for answer in measure(args, dtype, not_run):
            measured += make_rows(*answer)
            rows = pd.DataFrame(measured, columns=COLUMNS)
            rows.to_csv(args.out / "kernels.csv", index=False, float_format="%.6g")
    verdicts = judge(rows, limits_for(args.device))
    for table in (rows[SHOWN], verdicts):
        print("\n" + table.to_string(index=False, na_rep="", float_format="{:.3g}".format))
    for case, reason in not_run.items():
        print("not run:", *case, reason)
    if measured:
        draw(rows, args.out / "kernels.png")
    missed = verdicts[~verdicts.holds & verdicts.limit.map(lambda limit: _asked_for(limit, args.dtypes))]
    for it in missed.itertuples():
        print(f"missed: {it.limit} is {it.worst}, at most {it.at_most} ({it.where})", file=sys.stderr)
    return 1 if args.check and len(missed) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=positive, nargs="+", default=[64, 256, 2048], metavar="N")
    parser.add_argument("--vocab", type=positive, default=151_936, metavar="V")
    parser.add_argument("--support", type=positive, default=100, metavar="K")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES[:2], choices=DTYPES)
    parser.add_argument("--threads", type=positive, default=2, help="torch's threads on the CPU")
    parser.add_argument("--repeats", type=positive, default=9, help="rounds of every case")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_kernels"), help="of CSV and figure")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    args = parser.parse_args(arguments)
    args.tokens = sorted(set(args.tokens))
    if args.support >= args.vocab:
        parser.error(f"--support must be smaller than --vocab {args.vocab}, got {args.support}")
    return args


def positive(text: str) -> int:
    """A number of the command line."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _asked_for(limit: str, dtypes: Sequence[str]) -> bool:
    return not limit.startswith("gradient error") or limit.split(", ")[1] in dtypes


def describe(args: argparse.Namespace) -> None:
    """What runs where."""
    load = psutil.getloadavg()[0]
    device = torch.cuda.get_device_name() if args.device == "cuda" else processor("model name")
    libraries = f"torch {torch.__version__}, trl {trl_version() or 'not run: not installed'}"
    print(f"{device}, {args.threads} threads; {libraries}; load average {load:.2f}")
    print(f"V = {args.vocab}, K = {args.support}, {args.repeats} rounds; medians, 20th and 80th percentiles")
    if args.device == "cpu" and load > BUSY:
        print(f"the machine is busy (load average {load:.2f}): timings will be off", file=sys.stderr)


def measure(args: argparse.Namespace, dtype: str, not_run: NotRun) -> Iterator[tuple[Case, Times, dict[str, int]]]:
    """(case, its times, peak bytes by implementation) from few tokens to many."""
    sizes = args.vocab, args.support, args.threads, args.repeats, args.tokens[0]
    for tokens in args.tokens:
        case = Case(args.device, dtype, tokens, *sizes)
        peaks = {
            name: _answer(peak_memory, case, [name], not_run) for name in applicable(dtype) if name != "logsumexp"
        }
        extra = {name: peak for name, peak in peaks.items() if peak is not None}
        if "srpo" not in extra:
            not_run.update({(dtype, tokens, name): "srpo was not" for name in [*extra, "logsumexp"]})
        elif (answer := _answer(times, case, [*extra, "logsumexp"], not_run)) is not None:
            not_run.update({(dtype, tokens, name): reason for name, reason in answer.not_run.items()})
            yield case, answer, extra


def _answer(step: Callable[..., Any], case: Case, names: Sequence[str], not_run: NotRun) -> Any:
    """Of a process of its own; None where it has none, and `not_run` says why."""
    print(f"{case.dtype}, N = {case.tokens}: {step.__name__} of {', '.join(names)}", file=sys.stderr)
    try:
        if reason := _does_not_fit(case, names):
            raise CaseFailed(reason)
        return in_a_process(step, case, names)
    except CaseFailed as error:
        not_run.update({(case.dtype, case.tokens, name): str(error) for name in names})


def _does_not_fit(case: Case, names: Sequence[str]) -> str | None:
    """A reason where the free memory is less than one of the implementations may take; else None."""
    tensors = max(OTHER_TENSORS if name.startswith(("eager", "trl")) else OUR_TENSORS for name in names)
    needed, free = tensors * case.tokens * case.vocab * 4, psutil.virtual_memory().available
    if case.device != "cpu" or needed <= free:
        return None
    return f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


if __name__ == "__main__":
    sys.exit(main())

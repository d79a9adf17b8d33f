"""Time, memory and errors of the functions over logits: ``python -m scripts.bench_kernels --check``.

Every case (dtype, number of tokens) is measured in processes of its own, one after the other: peak memory in one
process per implementation, then the times of all of them in rounds in one process, so that ratios are of the same
round. Meant for an idle machine. docs/performance.md says what is measured and what the lower limits are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.bench import others
from scripts.bench.catalogue import IMPLEMENTATIONS, applicable
from scripts.bench.figure import draw
from scripts.bench.results import (
    BYTES,
    Row,
    implementations_table,
    judge,
    limits_for,
    make_rows,
    phases_table,
    verdicts_table,
    write_csv,
)

ROOT = Path(__file__).resolve().parents[1]
BUSY = 0.5
"""Load average at the start from which on timings are not to be trusted."""
USABLE_MEMORY = 0.85
"""Share of the memory that is free at the start of a case that it may take."""

NotRun = dict[tuple[str, int, str], str]


class CaseFailed(RuntimeError):
    """A worker that ended without an answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 1: --check, and a limit is missed."""
    args = parse(arguments)
    packages = {name for name in others.PACKAGES if _wanted(name, getattr(args, f"with_{name}"))}
    args.out.mkdir(parents=True, exist_ok=True)
    for line in describe(args, packages):
        print(line)
    rows: list[Row] = []
    not_run: NotRun = {}
    for dtype in args.dtypes:
        for case, answer, extra in measure(args, dtype, packages, not_run):
            rows += make_rows(case, answer, extra)
            write_csv(rows, args.out / "kernels.csv")
    verdicts = judge(rows, limits_for(args.device))
    report = [phases_table(rows), implementations_table(rows, not_run), verdicts_table(verdicts)]
    print("\n" + "\n\n".join(report))
    if rows:
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
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=BYTES)
    parser.add_argument("--threads", type=int, default=2, help="torch's threads on the CPU")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of every case")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    for name in others.PACKAGES:
        parser.add_argument(
            f"--with-{name}",
            action=argparse.BooleanOptionalAction,
            help=f"compare with {others.PACKAGES[name]}; left out: if it is installed",
        )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_kernels"), help="of kernels.csv")
    parser.add_argument("--figure", type=Path, help="file of the figure; left out: kernels.png in --out")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    args = parser.parse_args(arguments)
    args.tokens = sorted(set(args.tokens))
    for name in ("vocab", "support", "threads", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.tokens[0] < 1:
        parser.error(f"--tokens must be at least 1, got {args.tokens[0]}")
    if args.support >= args.vocab:
        parser.error(f"--support must be smaller than --vocab {args.vocab}, got {args.support}")
    return args


def _wanted(package: str, asked: bool | None) -> bool:
    """Whether to compare with TRL."""
    if asked and others.find(package) is None:
        raise SystemExit(f"--with-{package}: {others.PACKAGES[package]} is not installed, see docs/performance.md")
    return others.find(package) is not None if asked is None else asked


def _asked_for(limit: str, dtypes: Sequence[str]) -> bool:
    return not limit.startswith("gradient error") or limit.split(", ")[1] in dtypes


def describe(args: argparse.Namespace, packages: set[str]) -> Iterator[str]:
    """What runs where."""
    load = os.getloadavg()[0]
    libraries = [f"torch {version('torch')}"] + [f"{others.PACKAGES[name]} {others.find(name)}" for name in packages]
    yield f"{_processor(args.device)}, {args.threads} threads; {', '.join(libraries)}; load average {load:.2f}"
    yield f"V = {args.vocab}, K = {args.support}, {args.repeats} rounds; median (20th to 80th percentile)"
    for name in others.PACKAGES:
        if name not in packages:
            yield f"{others.PACKAGES[name]}: not run, {'not installed' if others.find(name) is None else 'not wanted'}"
    if args.device == "cpu" and load > BUSY:
        print(f"the machine is busy (load average {load:.2f}): timings will be off", file=sys.stderr)


def _processor(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def measure(
    args: argparse.Namespace, dtype: str, packages: set[str], not_run: NotRun
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, int]]]:
    """(case, the worker's answer, extra bytes by implementation) from few tokens to many."""
    per_token: dict[str, float] = {}
    for tokens in args.tokens:
        case = {
            "device": args.device,
            "dtype": dtype,
            "tokens": tokens,
            "vocab": args.vocab,
            "support": args.support,
            "threads": args.threads,
            "repeats": args.repeats,
            "head_tokens": args.tokens[0],
        }
        names, extra = applicable(packages, dtype), {}
        for name in list(names):
            if not IMPLEMENTATIONS[name].memory:
                continue
            reason = _does_not_fit(case, per_token.get(name, 0.0))
            if reason is None:
                try:
                    answer = run_worker({**case, "mode": "memory", "implementations": [name]})
                    reason = answer["not_run"].get(name)
                    extra.update(answer["extra"])
                except CaseFailed as error:
                    reason = str(error)
            if reason is not None:
                not_run[dtype, tokens, name] = reason
                names.remove(name)
            else:
                per_token[name] = extra[name] / tokens
        try:
            if "srpo" not in names:
                raise CaseFailed(not_run[dtype, tokens, "srpo"])
            answer = run_worker({**case, "mode": "times", "implementations": names})
        except CaseFailed as error:
            not_run.update({(dtype, tokens, name): str(error) for name in names})
            continue
        not_run.update({(dtype, tokens, name): reason for name, reason in answer["not_run"].items()})
        yield case, answer, extra


def _does_not_fit(case: dict[str, Any], extra_per_token: float) -> str | None:
    """A reason if the inputs, the gradient and what the last case predicts exceed the free memory; else None."""
    logits = case["tokens"] * case["vocab"] * BYTES[case["dtype"]]
    needed = 3 * logits + case["tokens"] * extra_per_token
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if case["device"] != "cpu" or found is None or needed <= USABLE_MEMORY * int(found[1]) * 1024:
        return None
    return f"needs {needed / 2**30:.1f} GiB, {int(found[1]) / 2**20:.1f} GiB are free"


def run_worker(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure in a fresh process."""
    what = (
        spec["implementations"][0] if spec["mode"] == "memory" else f"{len(spec['implementations'])} implementations"
    )
    print(f"{spec['dtype']}, N = {spec['tokens']}: {spec['mode']} of {what}", file=sys.stderr)
    command = [sys.executable, "-W", "ignore", "-m", "scripts.bench.worker"]
    # glibc then maps every larger buffer by itself: what is freed leaves the process at once, and hides no growth.
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if spec["mode"] == "memory" else {})}
    done = subprocess.run(command, input=json.dumps(spec), capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise CaseFailed(f"the process ended with {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())

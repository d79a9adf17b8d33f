"""What `scripts.count_kernels` counts, run and timed on a GPU: ``python -m scripts.bench_engine_calls``.

The engine's own calls for one micro-batch, plain and compiled, beside the eager path of the published code and stock
veRL's log-probs, and beside the time that the counts give at the bandwidth which a copy of the logits reaches here.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits_v2

from scripts import count_kernels
from scripts.bench import implementations
from scripts.bench.engine_calls import Case, EngineCalls
from scripts.bench.gpu_stopwatch import Measured, Stopwatch
from srpo_verl.markdown import markdown_table

Work = Callable[[Stopwatch], dict[str, Measured]]
COPY_BYTES = 2**31
"""Of the copy that measures the bandwidth, larger than any cache."""


@dataclass(frozen=True)
class Timed:
    """A path: how it runs, and what was counted of its calls."""

    work: Work
    counted: list[count_kernels.Line]


def engine(case: Case, compile_kernels: bool, watch: Stopwatch) -> dict[str, Measured]:
    """The engine's calls, and their sum."""
    found = EngineCalls(case, watch, compile_kernels).run()
    return found | {"all": sum(found.values(), Measured())}


def function(
    call: str, work: Callable[[torch.Tensor, torch.Tensor], Any], case: Case, watch: Stopwatch
) -> dict[str, Measured]:
    """A function of logits and labels."""
    logits_NV = watch.logits(case.tokens, case.vocab, case.dtype)
    labels_N = watch.known(torch.zeros(case.tokens, dtype=torch.int64))
    with watch:
        work(logits_NV, labels_N)
    return {call: watch.count}


def eager(case: Case, autocast: bool, watch: Stopwatch) -> dict[str, Measured]:
    """The eager path from two logits tensors to the gradient, all tokens distilled."""
    teacher_NV = watch.logits(case.tokens, case.vocab, case.dtype)
    # The stopwatch waits for the device once, at the end, and not after every stage.
    clock = implementations.Clock(torch.device("cpu"))

    def work(student_NV: torch.Tensor, labels_N: torch.Tensor) -> None:
        inputs = implementations.Inputs(student_NV, teacher_NV, labels_N, case.support)
        with torch.autocast(watch.device.type, torch.bfloat16) if autocast else nullcontext():
            implementations.eager(inputs, clock)

    return function("all", work, case, watch)


def paths(tokens: int, vocab: int, support: int) -> Iterator[Timed]:
    """What is timed, the shortest calls first."""
    whole = Case(tokens, vocab, support, 1.0, torch.bfloat16)
    for compile_kernels in (False, True):
        for share in count_kernels.SHARES:
            case = Case(tokens, vocab, support, share, torch.bfloat16)
            yield Timed(partial(engine, case, compile_kernels), count_kernels.engine(case, compile_kernels))
    log_probs, entropy = count_kernels.stock(whole)
    yield Timed(partial(function, log_probs.call, logprobs_from_logits_v2, whole), [log_probs])
    yield Timed(partial(function, entropy.call, lambda logits, _: entropy_from_logits(logits), whole), [entropy])
    for autocast in (False, True):
        yield Timed(partial(eager, whole, autocast), [count_kernels.eager(whole, autocast)])


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written per second by a copy on the device."""
    watch = Stopwatch(device)
    source, target = torch.ones(2, num_bytes, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(5):
        with watch:
            target.copy_(source)
        seconds.append(watch.count.time)
    return 2 * num_bytes / min(seconds)


def rows_of(path: Timed, device: torch.device, repeats: int, bandwidth: float) -> Iterator[dict[str, Any]]:
    """A row per call: the median over the rounds, after one that warms up and compiles; what does not fit says so."""
    try:
        path.work(Stopwatch(device))
        rounds = [path.work(Stopwatch(device)) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        yield {"path": path.counted[0].path, "call": "not enough memory"}
        return
    for line in path.counted:
        times = [1e3 * each[line.call].time for each in rounds]
        yield {
            "path": line.path,
            "call": line.call,
            "ms": round(statistics.median(times), 2),
            "least": round(min(times), 2),
            "most": round(max(times), 2),
            "counted": round(1e3 * line.count.seconds(count_kernels.LAUNCH, bandwidth), 2),
            "peak_mb": round(max(each[line.call].peak for each in rounds) / 1e6, 1),
            "counted_mb": round(line.count.peak / 1e6, 1),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_engine_calls", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tries the script")
    parser.add_argument("--tokens", type=int, default=8192, metavar="N")
    parser.add_argument("--vocab", type=int, default=151_936, metavar="V")
    parser.add_argument("--support", type=int, default=100, metavar="K")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of every path")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_engine_calls"), help="of engine_calls.csv")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    bandwidth = copy_bandwidth(device, min(COPY_BYTES, 2 * args.tokens * args.vocab))
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, a copy moves {bandwidth / 1e12:.2f} TB/s", flush=True)
    rows: list[dict[str, Any]] = []
    for path in paths(args.tokens, args.vocab, args.support):
        rows += rows_of(path, device, args.repeats, bandwidth)
        table = pd.DataFrame(rows)
        table.to_csv(args.out / "engine_calls.csv", index=False)
        print(f"{rows[-1]['path']}: {rows[-1].get('ms', rows[-1]['call'])} ms", flush=True)
    print("\n" + markdown_table(list(table), table.astype(str).values.tolist()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

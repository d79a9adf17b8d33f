"""Launches, bytes, memory and synchronisations a GPU would see: ``python -m scripts.count_kernels``. Needs no GPU.

Counted are the engine's own calls for one micro-batch, beside the eager path of the published code and stock veRL's
log-probs. `scripts/bench/gpu_meter.py` says what is assumed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.overrides import TorchFunctionMode
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits_v2

from scripts.bench import implementations
from scripts.bench.engine_calls import Case, EngineCalls
from scripts.bench.gpu_meter import Count, Meter
from srpo_verl.markdown import markdown_table

LAUNCH = 5e-6
"""Seconds from one kernel of PyTorch to the next, where kernels are short."""
DEVICES = {"A100-80GB": 1.8e12, "H100": 3.0e12, "H200": 4.3e12, "H20": 3.6e12}
"""Bytes per second: 90 % of the data sheets' 2.0, 3.35, 4.8 and 4.0 TB/s."""
SHARES = (0.0, 0.4, 1.0)

# For bf16 logits, N = 8192, V = 151,936, K = 100; time on an H100.
LIMITS = {
    "engine, 40 % distilled: bytes per logit": 80.0,
    "engine, 40 % distilled: launches": 2600,
    "engine, 40 % distilled: peak MB": 200.0,
    "engine, 40 % distilled: time / eager path under autocast": 0.65,
    "engine, 40 % distilled: synchronisations per call": 3,
    "engine, 0 % distilled: bytes per logit": 60.0,
    "engine compiled, 40 % distilled: bytes per logit": 18.0,
}

AUTOCAST_TO_FLOAT32 = {"logsumexp", "log_softmax", "softmax", "exp", "log", "sum", "expm1"}
"""Of the operations of the eager path, those that `torch.autocast` runs in fp32."""


class Autocast(TorchFunctionMode):
    """What `torch.autocast` does to the eager path; it knows no meta tensors itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in AUTOCAST_TO_FLOAT32:
            args = tuple(arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Line:
    """One call of one path."""

    path: str
    call: str
    count: Count

    def row(self, logits: int) -> dict[str, Any]:
        c = self.count
        return {
            "path": self.path,
            "call": self.call,
            "launches": c.launches,
            "bytes_per_logit": round(c.bytes / logits, 2),
            "reread_per_logit": round(c.reread / logits, 2),
            "peak_mb": round(c.peak / 1e6, 1),
            "synchronisations": c.syncs,
            **{f"ms_{name}": round(1e3 * c.seconds(LAUNCH, rate), 2) for name, rate in DEVICES.items()},
        }


def engine(case: Case, compile_kernels: bool = False) -> list[Line]:
    """The engine's calls over one micro-batch, and their sum."""
    name = f"engine{' compiled' if compile_kernels else ''}, {case.share:.0%} distilled".replace("%", " %")
    counts = EngineCalls(case, Meter(), compile_kernels).run()
    counts["all"] = sum(counts.values(), Count())
    return [Line(name, call, count) for call, count in counts.items()]


def _inputs(case: Case) -> implementations.Inputs:
    student, teacher = torch.empty(2, case.tokens, case.vocab, dtype=case.dtype, device="meta")
    labels = torch.empty(case.tokens, dtype=torch.int64, device="meta")
    return implementations.Inputs(student, teacher, labels, case.support)


def _count(call: Callable[[], Any]) -> Count:
    with Meter() as meter:
        call()
    return meter.count


def eager(case: Case, autocast: bool) -> Line:
    """The eager path from two logits tensors to the gradient, all tokens distilled."""
    inputs = _inputs(case)
    clock = implementations.Clock(inputs.student.device)
    with Autocast() if autocast else nullcontext():
        count = _count(lambda: implementations.eager(inputs, clock))
    return Line("eager path, " + ("under autocast" if autocast else "bf16 as it comes"), "all", count)


def stock(case: Case) -> Iterator[Line]:
    """Stock veRL's log-probs without flash-attn, forward, and its entropy."""
    logits, labels = _inputs(case).student, _inputs(case).labels
    log_probs = _count(lambda: logprobs_from_logits_v2(logits, labels))
    yield Line("stock veRL", "log-probs, loop over rows", log_probs)
    yield Line("stock veRL", "entropy", _count(lambda: entropy_from_logits(logits)))


def judge(lines: Sequence[Line], logits: int) -> list[tuple[str, float, float]]:
    """(limit, at most, counted)."""
    whole = {line.path: line for line in lines if line.call == "all"}
    ours, grpo, compiled = (
        whole[name].count
        for name in ("engine, 40 % distilled", "engine, 0 % distilled", "engine compiled, 40 % distilled")
    )
    theirs = whole["eager path, under autocast"].count
    rate = DEVICES["H100"]
    counted = (
        ours.bytes / logits,
        ours.launches,
        ours.peak / 1e6,
        ours.seconds(LAUNCH, rate) / theirs.seconds(LAUNCH, rate),
        ours.syncs,
        grpo.bytes / logits,
        compiled.bytes / logits,
    )
    return [(name, limit, value) for (name, limit), value in zip(LIMITS.items(), counted, strict=True)]


def count_all(tokens: int, vocab: int, support: int) -> list[Line]:
    lines: list[Line] = []
    for compile_kernels in (False, True):
        for share in SHARES:
            lines += engine(Case(tokens, vocab, support, share, torch.bfloat16), compile_kernels)
    case = Case(tokens, vocab, support, 1.0, torch.bfloat16)
    return [*lines, eager(case, False), eager(case, True), *stock(case)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 1: --check, and a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.count_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192, metavar="N")
    parser.add_argument("--vocab", type=int, default=151_936, metavar="V")
    parser.add_argument("--support", type=int, default=100, metavar="K")
    parser.add_argument("--out", type=Path, default=Path("outputs/count_kernels"), help="of counts.csv")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    args = parser.parse_args(arguments)
    logits = args.tokens * args.vocab
    lines = count_all(args.tokens, args.vocab, args.support)
    rows = pd.DataFrame([line.row(logits) for line in lines])
    args.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(args.out / "counts.csv", index=False)
    print(markdown_table(list(rows), rows.astype(str).values.tolist()))
    verdicts = judge(lines, logits)
    shown = [[name, f"{most:g}", f"{got:.4g}"] for name, most, got in verdicts]
    print("\n" + markdown_table(["limit", "at most", "counted"], shown))
    missed = [name for name, most, got in verdicts if got > most]
    for name in missed:
        print(f"missed: {name}", file=sys.stderr)
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

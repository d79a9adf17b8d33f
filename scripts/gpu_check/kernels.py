"""The functions over logits on a device: against float64, and against the same from torch's operations.

Needs torch alone. What is compared is that of `scripts.bench`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from scripts.bench.float64 import errors
from scripts.bench.gpu_stopwatch import Stopwatch
from scripts.bench.implementations import Clock, Inputs, Result, Run, eager, make_inputs, srpo
from scripts.bench.limits import LIMITS
from scripts.gpu_check.lines import FAIL, INACTIVE, Line, guarded, limited

PART = "kernels"
MEMORY_LIMIT = 0.1
"""Largest share of the eager path's memory; on a CPU it is not measured."""

OURS: dict[str, Run] = {
    "support, teacher, divergence": srpo,
    "the same, log-probs and gradient in place": partial(srpo, as_engine=True),
}
EAGER: dict[str, Run] = {
    "eager": eager,
    "eager in fp32": partial(eager, with_labels=True, cast=True),
}
"""In the order of OURS: without and with the log-probs, as they come and as under autocast."""


@dataclass(frozen=True)
class Sizes:
    """N tokens, V vocabulary, K support."""

    tokens: int
    vocabulary: int
    support: int
    repeats: int


FULL = Sizes(tokens=8192, vocabulary=151_936, support=100, repeats=5)
SMALL = Sizes(tokens=48, vocabulary=4096, support=10, repeats=2)


def run(device: torch.device, small: bool) -> Iterator[Line]:
    """Two dtypes: errors, then time and memory."""
    sizes = SMALL if small else FULL
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        # float32 at full size would need three tensors of 5 GB for nothing that bfloat16 does not show.
        tokens = sizes.tokens if dtype == torch.bfloat16 else min(sizes.tokens, 1024)
        inputs = make_inputs(tokens, sizes.vocabulary, sizes.support, dtype, device)
        for title, ours in OURS.items():
            yield guarded(PART, f"{title}, {name}", partial(accuracy, PART, title, ours, name, inputs))
        for (title, ours), (other, theirs) in zip(OURS.items(), EAGER.items(), strict=True):
            pair, limit = f"{title} / {other}, {name}", MEMORY_LIMIT if "in place" in title else None
            work = partial(compare, PART, pair, {"ours": ours, "eager": theirs}, inputs, sizes.repeats, limit)
            yield guarded(PART, pair, work)
        del inputs


def accuracy(part: str, title: str, work: Run, dtype: str, inputs: Inputs) -> Line:
    """Gradient and entropy of a few tokens against float64."""
    with_labels = "log-probs" in title
    result = work(inputs, Clock(inputs.student.device))
    gradient, entropy = errors(inputs, result, with_labels)
    figures = {"gradient error": gradient or 0.0, "entropy error": entropy or 0.0}
    limits = {"gradient error": LIMITS[f"gradient error, {dtype}"], "entropy error": LIMITS["entropy error, nats"]}
    return limited(part, f"{title}, {dtype}", figures, limits, "float64, a few tokens")


def compare(
    part: str,
    name: str,
    implementations: Mapping[str, Run],
    inputs: Inputs,
    repeats: int,
    memory_limit: float | None,
) -> Line:
    """Median seconds in turn, and peak memory beyond the inputs; ratios of the first of two to the second.

    Where the second does not fit into the device, the line is INACTIVE. `memory_limit`: None for any.
    """
    device = inputs.student.device
    first, second = implementations
    rounds: dict[str, list[float]] = {key: [] for key in implementations}
    peaks: dict[str, int] = {}
    for key, implementation in implementations.items():  # warms up, too
        try:
            peaks[key] = peak_bytes(partial(implementation, inputs), device)
        except torch.OutOfMemoryError:
            status = INACTIVE if key == second else FAIL
            return Line(part, name, status, f"{key}: not enough memory", figures_of(peaks))
    for _ in range(repeats):
        for key, implementation in implementations.items():
            clock = Clock(device)
            implementation(inputs, clock)
            rounds[key].append(sum(value for stage, value in clock.seconds.items() if stage != "setup"))
    figures = {f"{key} ms": 1e3 * statistics.median(values) for key, values in rounds.items()} | figures_of(peaks)
    figures["time ratio"] = figures[f"{first} ms"] / figures[f"{second} ms"]
    limits = {}
    if device.type == "cuda":
        figures["memory ratio"] = peaks[first] / peaks[second]
        limits = {} if memory_limit is None else {"memory ratio": memory_limit}
    return limited(part, name, figures, limits, f"{len(inputs.labels)} tokens")


def figures_of(peaks: Mapping[str, int]) -> dict[str, float]:
    """MB, where they were measured."""
    return {f"{key} MB": value / 1e6 for key, value in peaks.items() if value}


def peak_bytes(work: Callable[[Clock], Result], device: torch.device) -> int:
    """What a call allocates at most beyond what was there, less one tensor of the logits' size; 0 on a CPU.

    That tensor is the gradient, or the copy of the logits whose place it takes; every implementation has it.
    """
    watch = Stopwatch(device)
    with watch:
        result = work(Clock(device))
    if device.type != "cuda":
        return 0
    assert result.grad is not None
    return watch.count.peak - result.grad.numel() * result.grad.element_size()

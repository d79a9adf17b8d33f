"""Errors of the functions over logits against float64, by device: ``python -m scripts.kernel_errors``.

The passes of a CPU and those of an accelerator (`srpo_verl.algos.device`) compute the same logits, both on the CPU, in
shapes that no block size divides; the reference shares no line with either. On an accelerator the kernels are others,
torch's softmax above all: what is compared here are the formulas.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

import torch

from scripts.bench.float64 import exact
from scripts.bench.implementations import ALPHA, Inputs, make_inputs
from scripts.bench.limits import LIMITS
from srpo_verl.algos import device
from srpo_verl.functional import score_teacher, token_losses, topk_support
from srpo_verl.markdown import markdown_table

PASSES = {"cpu": device.CPU, "accelerator": device.ACCELERATOR}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = ((3, 47, 5), (31, 123, 31), (47, 31, 3), (123, 1009, 47), (3, 32003, 100))
"""(N, V, K)."""
QUANTITIES = ("log-probs", "divergence", "entropy", "teacher log-probs", "teacher entropy", "gradient")
AT_MOST = 2e-5
"""The largest error in nats, of either; the same limit as in `scripts.bench_kernels`, as for the gradient."""


def computed(inputs: Inputs, support: torch.Tensor, passes: device.Passes) -> list[torch.Tensor]:
    """QUANTITIES of every token, by the shipped functions."""
    logits = inputs.student.detach().requires_grad_()
    with mock.patch.object(device, "CPU", passes):
        log_q, teacher_entropy = score_teacher(inputs.teacher, support)
        losses = token_losses(
            logits,
            inputs.labels,
            distilled_N=is_distilled(inputs),
            support_SK=support[is_distilled(inputs)],
            teacher_log_probs_SK=log_q[is_distilled(inputs)],
            alpha=ALPHA,
            with_entropy=True,
        )
        total = losses.log_probs_N.sum() + losses.divergence_N.sum() + losses.entropy_N.sum()
        (grad,) = torch.autograd.grad(total, logits)
    return [losses.log_probs_N, losses.divergence_N, losses.entropy_N, log_q, teacher_entropy, grad]


def is_distilled(inputs: Inputs) -> torch.Tensor:
    """Two tokens of five."""
    return torch.arange(len(inputs.labels)) % 5 < 2


def errors(dtype: torch.dtype, seeds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """By passes and quantity: (root mean square, largest) of the errors over all shapes.

    In nats; of the gradient over the largest entry of its row.
    """
    found: dict[str, dict[str, list[torch.Tensor]]] = {name: {which: [] for which in QUANTITIES} for name in PASSES}
    for inputs in _cases(dtype, seeds):
        support = topk_support(inputs.student, inputs.k)
        wanted = exact(inputs, support, with_entropy=True, distilled_N=is_distilled(inputs))
        scale = wanted.grad_NV.abs().amax(-1, keepdim=True)
        for name, passes in PASSES.items():
            for which, got, want in zip(QUANTITIES, computed(inputs, support, passes), wanted, strict=True):
                error = (got.detach().double() - want) / (scale if which == "gradient" else 1.0)
                found[name][which].append(error.flatten())
    return {
        name: {
            which: (float(torch.cat(values).square().mean().sqrt()), float(torch.cat(values).abs().max()))
            for which, values in by_quantity.items()
        }
        for name, by_quantity in found.items()
    }


def _cases(dtype: torch.dtype, seeds: int) -> Iterator[Inputs]:
    for seed in range(seeds):
        for tokens, vocab, k in SHAPES:
            yield make_inputs(tokens, vocab, k, dtype, torch.device("cpu"), seed)


def limit(which: str, dtype: torch.dtype) -> float:
    """The largest error that is allowed."""
    if which != "gradient":
        return AT_MOST
    return LIMITS["gradient error, float32" if dtype == torch.float32 else "gradient error, bfloat16"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 1: --check, and an error is larger than its limit."""
    parser = argparse.ArgumentParser(prog="python -m scripts.kernel_errors", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    args = parser.parse_args(arguments)
    lines, missed = [], []
    for name, dtype in DTYPES.items():
        found = errors(dtype, args.seeds)
        for which in QUANTITIES:
            (cpu, cpu_worst), (other, other_worst) = found["cpu"][which], found["accelerator"][which]
            lines.append([name, which, *(f"{value:.1e}" for value in (cpu, other, cpu_worst, other_worst))])
            most = limit(which, dtype)
            missed += [f"{name}, {which}: at most {most:g}"] if max(cpu_worst, other_worst) > most else []
    head = ["dtype", "of", "rms, CPU", "rms, accelerator", "largest, CPU", "largest, accelerator"]
    print(markdown_table(head, lines))
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Errors of the functions over logits against float64, by device: ``python -m scripts.kernel_errors``.

The passes of a CPU and those of an accelerator (`srpo_verl.algos.device`) compute the same logits, both on the CPU, in
shapes that no block size divides; the reference shares no line with either. What an accelerator's passes return is as
exact as the softmax that they call. torch's on a CPU adds a row's terms up one after the other in a few lanes, and the
error of that sum is in every term; torch's on CUDA adds up in 32 or 1,024 lanes and these in a tree. So the passes are
measured with both: with a softmax that adds up in CUDA's order, and with this CPU's. On an accelerator: not run.
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

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = ((3, 47, 5), (31, 123, 31), (47, 31, 3), (123, 1009, 47), (3, 32003, 100))
"""(N, V, K)."""
QUANTITIES = ("log-probs", "divergence", "entropy", "teacher log-probs", "teacher entropy", "gradient")
AT_MOST = 2e-5
"""The largest error in nats, of either; the same limit as in `scripts.bench_kernels`, as for the gradient."""


def sum_as_cuda(terms_NV: torch.Tensor) -> torch.Tensor:
    """Sums of rows in the order of torch's CUDA softmax: (N, 1).

    A warp has a row of up to 1,024 entries, a block of 1,024 threads a longer one. Every lane adds up its entries one
    after the other, then a tree adds up the lanes.
    """
    lanes = 32 if terms_NV.shape[1] <= 1024 else 1024
    padded = torch.nn.functional.pad(terms_NV, (0, -terms_NV.shape[1] % lanes))
    total = torch.zeros(len(terms_NV), lanes, dtype=terms_NV.dtype)
    for part in padded.split(lanes, dim=1):
        total = total + part
    while total.shape[1] > 1:
        left, right = total.chunk(2, dim=1)
        total = left + right
    return total


def softmax_as_cuda(logits: torch.Tensor, dim: int, *, out: torch.Tensor) -> torch.Tensor:
    weights = (logits - logits.amax(dim, keepdim=True)).exp()
    return torch.div(weights, sum_as_cuda(weights), out=out)


def log_softmax_as_cuda(logits: torch.Tensor, dim: int, *, out: torch.Tensor) -> torch.Tensor:
    shifted = logits - logits.amax(dim, keepdim=True)
    return torch.sub(shifted, sum_as_cuda(shifted.exp()).log(), out=out)


WAYS = {
    "CPU": (device.CPU, torch.softmax, torch.log_softmax),
    "accelerator": (device.ACCELERATOR, softmax_as_cuda, log_softmax_as_cuda),
    "accelerator, CPU's softmax": (device.ACCELERATOR, torch.softmax, torch.log_softmax),
}
"""Passes, and what they are computed with."""


def computed(inputs: Inputs, support: torch.Tensor) -> list[torch.Tensor]:
    """QUANTITIES of every token, by the shipped functions."""
    logits = inputs.student.detach().requires_grad_()
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
    """By way and quantity: (root mean square, largest) of the errors over all shapes.

    In nats; of the gradient over the largest entry of its row.
    """
    found: dict[str, dict[str, list[torch.Tensor]]] = {name: {which: [] for which in QUANTITIES} for name in WAYS}
    for inputs in _cases(dtype, seeds):
        support = topk_support(inputs.student, inputs.k)
        wanted = exact(inputs, support, with_entropy=True, distilled_N=is_distilled(inputs))
        scale = wanted.grad_NV.abs().amax(-1, keepdim=True)
        for name, (passes, softmax, log_softmax) in WAYS.items():
            in_torch = mock.patch.multiple(torch, softmax=softmax, log_softmax=log_softmax)
            with mock.patch.object(device, "CPU", passes), in_torch:
                values = computed(inputs, support)
            for which, got, want in zip(QUANTITIES, values, wanted, strict=True):
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
            by_way = [found[way][which] for way in WAYS]
            lines.append([name, which, *(f"{rms:.1e} ({largest:.1e})" for rms, largest in by_way)])
            most = limit(which, dtype)
            missed += [f"{name}, {which}: at most {most:g}"] if max(worst for _, worst in by_way) > most else []
    print(markdown_table(["dtype", "rms (largest) of", *WAYS], lines))
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Exponential moving average of weights, and how far the average is from its source."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Elements of a weight that are compared at a time.
CPU_CHUNK = 2**17
ACCELERATOR_CHUNK = 2**26


def ema_step(teacher: Iterable[torch.Tensor], student: Iterable[torch.Tensor], rate: float) -> torch.Tensor:
    """theta' <- (1 - rate) * theta' + rate * theta, in place, tensor by tensor (paper appendix B.5).

    Args:
        teacher: fp32 tensors; in bf16 most of an update of this size would round away.
        student: tensors of the same shapes in the same order, of any dtype, on any device.
        rate: weight of the student, in (0, 1].

    Returns:
        `squared_distance` afterwards, from the same pass over the weights.

    Raises:
        ValueError: a teacher tensor is not fp32 (or float64), or shapes or counts differ.
    """
    return _pass(teacher, student, rate)


def squared_distance(teacher: Iterable[torch.Tensor], student: Iterable[torch.Tensor]) -> torch.Tensor:
    """(sum (theta' - theta)^2, sum theta^2) over all tensors, as a float64 tensor of shape (2,) on the CPU.

    The relative L2 distance of the whole set is the square root of their quotient; sums of shards add up. Raises as
    `ema_step` does.
    """
    return _pass(teacher, student, None)


@torch.no_grad()
def _pass(teacher: Iterable[torch.Tensor], student: Iterable[torch.Tensor], rate: float | None) -> torch.Tensor:
    """Average, unless `rate` is None, and measure: one pass over the weights."""
    parts = []
    room = torch.empty(0)
    for index, (average, source) in enumerate(zip(teacher, student, strict=True)):
        if average.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"teacher tensor {index} is {average.dtype}; the average has to be kept in fp32")
        if average.shape != source.shape:
            raise ValueError(
                f"tensor {index}: teacher has shape {tuple(average.shape)}, student {tuple(source.shape)}"
            )
        # In chunks: no second copy of a weight, and on a CPU a chunk stays in its caches.
        size = CPU_CHUNK if average.device.type == "cpu" else ACCELERATOR_CHUNK
        if room.dtype != average.dtype or room.device != average.device or len(room) < min(size, average.numel()):
            room = average.new_empty(min(size, average.numel()))
        # A view, so that the step reaches the tensor itself.
        for ours, theirs in zip(average.view(-1).split(size), source.reshape(-1).split(size), strict=True):
            theirs = theirs.to(device=average.device, dtype=average.dtype)
            if rate is not None:
                ours.lerp_(theirs, rate)
            difference = torch.sub(ours, theirs, out=room[: len(ours)])
            # Within a chunk fp32 is exact enough (1e-6); the chunks add up in float64.
            parts += [difference.dot(difference), theirs.dot(theirs)]
    if not parts:
        return torch.zeros(2, dtype=torch.float64)
    return torch.stack(parts).to("cpu", torch.float64).view(-1, 2).sum(dim=0)

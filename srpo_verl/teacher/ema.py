"""Exponential moving average of weights, and how far the average is from its source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch

# Elements of a weight that are compared at a time.
CPU_CHUNK = 2**17
ACCELERATOR_CHUNK = 2**26
TRANSFER_BYTES = 2**26
"""Of one copy between devices, where teacher and student are on different ones: 64 MiB."""

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""A teacher's tensor and the student's values for it."""


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
    for average, source in _beside(_checked(teacher, student)):
        # In chunks: no second copy of a weight, and on a CPU a chunk stays in its caches.
        size = CPU_CHUNK if average.device.type == "cpu" else ACCELERATOR_CHUNK
        if room.dtype != average.dtype or room.device != average.device or len(room) < min(size, len(average)):
            room = average.new_empty(min(size, len(average)))
        for ours, theirs in zip(average.split(size), source.split(size), strict=True):
            theirs = theirs.to(average.dtype)
            if rate is not None:
                ours.lerp_(theirs, rate)
            difference = torch.sub(ours, theirs, out=room[: len(ours)])
            # Within a chunk fp32 is exact enough (1e-6); the chunks add up in float64.
            parts += [difference.dot(difference), theirs.dot(theirs)]
    if not parts:
        return torch.zeros(2, dtype=torch.float64)
    return torch.stack(parts).to("cpu", torch.float64).view(-1, 2).sum(dim=0)


def _checked(teacher: Iterable[torch.Tensor], student: Iterable[torch.Tensor]) -> Iterator[Pair]:
    """Both flat. Views of the teacher's, so that a step reaches the tensors themselves."""
    for index, (average, source) in enumerate(zip(teacher, student, strict=True)):
        if average.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"teacher tensor {index} is {average.dtype}; the average has to be kept in fp32")
        if average.shape != source.shape:
            raise ValueError(
                f"tensor {index}: teacher has shape {tuple(average.shape)}, student {tuple(source.shape)}"
            )
        yield average.view(-1), source.reshape(-1)


def _beside(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The same pairs with the student's values on the teacher's device, in other cuts where they had to travel.

    They travel in pieces of TRANSFER_BYTES, whatever the sizes of the weights; only the last one is smaller. A pair is
    valid until the next one is asked for.
    """
    piece: _Piece | None = None
    for average, source in pairs:
        if average.device == source.device:
            yield average, source
            continue
        if piece is not None and not piece.takes(average, source):
            yield from piece.moved()
            piece = None
        piece = piece or _Piece(average, source)
        while len(source):
            count = piece.fill(average, source)
            average, source = average[count:], source[count:]
            if piece.full:
                yield from piece.moved()
    if piece is not None:
        yield from piece.moved()


class _Piece:
    """Room for one transfer on either side, and what is in it. The side on the CPU is pinned: copies are then fast."""

    def __init__(self, average: torch.Tensor, source: torch.Tensor):
        length = TRANSFER_BYTES // average.element_size()
        self.packed, self.landed = (
            like.new_empty(
                length,
                dtype=average.dtype,
                pin_memory=like.device.type == "cpu" and torch.accelerator.is_available(),
            )
            for like in (source, average)
        )
        self.members: list[torch.Tensor] = []
        self.filled = 0

    @property
    def full(self) -> bool:
        return self.filled == len(self.packed)

    def takes(self, average: torch.Tensor, source: torch.Tensor) -> bool:
        """Whether a pair is of this piece's devices and dtype."""
        here, there = self.landed, self.packed
        return (average.device, average.dtype, source.device) == (here.device, here.dtype, there.device)

    def fill(self, average: torch.Tensor, source: torch.Tensor) -> int:
        """Take as many elements from the start of a pair as there is room for; how many that were."""
        count = min(len(source), len(self.packed) - self.filled)
        self.packed[self.filled : self.filled + count].copy_(source[:count])
        self.members.append(average[:count])
        self.filled += count
        return count

    def moved(self) -> Iterator[Pair]:
        """Empty the piece: what it holds, on the teacher's device."""
        if not self.filled:
            return
        self.landed[: self.filled].copy_(self.packed[: self.filled])
        values = self.landed[: self.filled].split([len(member) for member in self.members])
        yield from zip(self.members, values, strict=True)
        self.members, self.filled = [], 0

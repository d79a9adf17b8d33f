"""Runs what the meter counts, on a device, and takes its time and memory: in the place of `gpu_meter.Meter`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from srpo_verl.algos import compiled_passes


@dataclass
class Measured:
    """Seconds from an empty queue to an empty queue, and bytes allocated at most beyond those before."""

    time: float = 0.0
    peak: int = 0

    def __add__(self, other: Measured) -> Measured:
        """Calls one after the other."""
        return Measured(self.time + other.time, max(self.peak, other.peak))


class Stopwatch:
    """Inside the context, operations are timed; `count` has those of the last one. On a CPU memory is not measured."""

    def __init__(self, device: torch.device):
        self.device = device
        self.count = Measured()
        self._compiled = compiled_passes.compiled  # `fused` stands in its place while a path runs
        self._generator = torch.Generator(device).manual_seed(0)

    def fused(self, function: Callable[..., None]) -> Callable[..., None]:
        """By the compiler."""
        return self._compiled(function)

    def known(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values on the device; not timed."""
        return tensor.to(self.device)

    def logits(self, num_tokens: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
        """Random numbers, since equal ones move faster."""
        logits_NV = torch.empty(num_tokens, vocab, dtype=dtype, device=self.device)
        return logits_NV.normal_(std=2.0, generator=self._generator)

    def __enter__(self) -> Stopwatch:
        self._before = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        peak = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device) - self._before
        self.count = Measured(time.perf_counter() - self._started, peak)

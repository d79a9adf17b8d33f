"""Which passes a device gets: the only place that asks.

* A CPU casts a chunk up once and passes over it in its caches; a row per thread. Where its `exp` is slow, `exp2`.
* Any other device casts in registers, has a softmax in one kernel, and takes longer to launch a kernel than to read a
  few rows: larger chunks, larger blocks of supports, 512 rows at a time for the top K.
* With `compile_kernels` torch's compiler writes the passes, on whatever device.
"""

from __future__ import annotations

import torch

from srpo_verl.algos.accelerator_passes import AcceleratorPasses
from srpo_verl.algos.compiled_passes import CompiledPasses
from srpo_verl.algos.passes import Passes

CPU, ACCELERATOR, COMPILED = Passes(), AcceleratorPasses(), CompiledPasses()


def passes_for(device: torch.device, compile_kernels: bool) -> Passes:
    """The passes that suit a device."""
    if compile_kernels:
        return COMPILED
    return CPU if device.type == "cpu" else ACCELERATOR

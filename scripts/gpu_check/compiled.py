"""`srpo.kernels.compile=true`: the functions over logits by `torch.compile`, against float64 and the plain ones.

Needs torch, and what its compiler needs: Triton on a GPU, a C++ compiler on a CPU.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from functools import partial

import torch

from scripts.bench.implementations import make_inputs, srpo
from scripts.gpu_check.kernels import FULL, SMALL, accuracy, compare
from scripts.gpu_check.lines import INACTIVE, Line, guarded

PART = "compiled"
TITLE = "log-probs and gradient in place"


def run(device: torch.device, small: bool) -> Iterator[Line]:
    """Two dtypes: errors, then time and memory beside the plain functions. Compiling is not in the time."""
    if lacking := missing(device):
        yield Line(PART, "all", INACTIVE, f"{lacking}, which torch.compile needs here")
        return
    sizes = SMALL if small else FULL
    plain = partial(srpo, as_engine=True)
    compiled = partial(plain, compiled=True)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        tokens = sizes.tokens if dtype == torch.bfloat16 else min(sizes.tokens, 1024)
        inputs = make_inputs(tokens, sizes.vocabulary, sizes.support, dtype, device)
        yield guarded(PART, f"{TITLE}, {name}", partial(accuracy, PART, TITLE, compiled, name, inputs))
        pair = f"compiled / plain, {name}"
        both = {"compiled": compiled, "plain": plain}
        yield guarded(PART, pair, partial(compare, PART, pair, both, inputs, sizes.repeats, None))
        del inputs


def missing(device: torch.device) -> str | None:
    """What the compiler lacks on this machine; None where it has all."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    # Triton compiles its launchers with a C compiler, Inductor its loops for a CPU with a C++ one.
    if not any(map(shutil.which, ("gcc", "clang", "cc") if device.type == "cuda" else ("g++", "clang++"))):
        return "there is no C compiler"
    return None

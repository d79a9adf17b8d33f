"""One case in a process of its own: reads what to measure as JSON from stdin, prints what it measured as JSON.

Peak memory of the CPU is the process's resident memory: Linux forgets its high-water mark when 5 is written to
/proc/self/clear_refs, so `VmHWM` afterwards is the peak of what follows. Elsewhere the high-water mark since the start
is used; the inputs are made row by row, so that it is theirs. For CUDA it is what the caching allocator handed out.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts.bench.catalogue import GROWTH, IMPLEMENTATIONS
from scripts.bench.work import Clock, Inputs, Result, Work, errors, make_inputs

PROC = Path("/proc/self")
COPY_BYTES = 2**28
EXP_ELEMENTS_PER_THREAD = 2**16
"""Input and output take 512 KiB per thread: they stay in a core's own cache."""


def main() -> None:
    spec = json.load(sys.stdin)
    torch.set_num_threads(spec["threads"])
    device, dtype = torch.device(spec["device"]), getattr(torch, spec["dtype"])
    works: dict[str, Work] = {}
    reasons = {}
    for name in spec["implementations"]:
        try:
            works[name] = IMPLEMENTATIONS[name].load()
        except (ImportError, RuntimeError) as error:  # a library that does not import here is a result, too
            reasons[name] = _reason(error)
    inputs = make_inputs(spec["tokens"], spec["vocab"], spec["support"], dtype, device)
    measure = {"times": _times, "memory": _memory}[spec["mode"]]
    answer = {**measure(spec, inputs, works, reasons), "not_run": reasons, "load": os.getloadavg()[0]}
    print(json.dumps(answer))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _run(work: Work, inputs: Inputs) -> tuple[dict[str, float], Result]:
    gc.collect()
    clock = Clock(inputs.student.device)
    result = work(inputs, clock)
    clock.seconds.pop("setup", None)
    return clock.seconds, result


def _try(works: dict[str, Work], inputs: Inputs, reasons: dict[str, str]) -> Iterable[tuple[str, Result]]:
    """Run each once, to warm up and to see whether it runs here; those that do not are taken out."""
    for name in list(works):
        try:
            yield name, _run(works[name], inputs)[1]
        except (RuntimeError, ValueError) as error:
            reasons[name] = _reason(error)
            del works[name]


def _times(spec: dict[str, Any], inputs: Inputs, works: dict[str, Work], reasons: dict[str, str]) -> dict[str, Any]:
    """Rounds in which every implementation runs once; every second round in reverse order."""
    found = {}
    for name, result in _try(works, inputs, reasons):
        found[name] = errors(inputs, result, IMPLEMENTATIONS[name].labels)
        del result
    heads = {name: _head(spec, inputs, works[name]) for name in GROWTH if name in works}
    copy, exp = _copy(inputs), _exp(inputs)
    rounds = []
    for number in range(spec["repeats"]):
        seconds: dict[str, Any] = {}
        order = list(works) if number % 2 == 0 else list(works)[::-1]
        for name in order:
            seconds[name], result = _run(works[name], inputs)
            del result
        first = {name: head() for name, head in heads.items()}
        rounds.append({"seconds": seconds, "head": first, "copy": copy(), "exp": exp()})
    return {"rounds": rounds, "errors": found}


def _head(spec: dict[str, Any], inputs: Inputs, work: Work) -> Callable[[], float]:
    """Seconds of the pipeline on the first tokens of the same logits, the median of a few runs."""
    few, runs = inputs.head(spec["head_tokens"]), min(8, -(-spec["tokens"] // spec["head_tokens"]))
    return lambda: statistics.median(sum(_run(work, few)[0].values()) for _ in range(runs))


def _copy(inputs: Inputs) -> Callable[[], float]:
    """Bytes per second of a copy, read and written ones counted."""
    bytes_each = min(COPY_BYTES, inputs.student.numel() * inputs.student.element_size())
    source = torch.ones(bytes_each // 4, dtype=torch.float32, device=inputs.student.device)
    target = torch.zeros_like(source)

    def run() -> float:
        clock = Clock(source.device)
        for _ in range(3):
            target.copy_(source)
        clock.mark("copy")
        return 3 * 2 * source.numel() * 4 / clock.seconds["copy"]

    return run


def _exp(inputs: Inputs) -> Callable[[], float]:
    """Elements per second of torch.exp in fp32, from cache to cache."""
    num = EXP_ELEMENTS_PER_THREAD * torch.get_num_threads()
    num = num if inputs.student.device.type == "cpu" else 2**22
    source = torch.linspace(-20.0, 0.0, num, device=inputs.student.device)
    target = torch.zeros_like(source)

    def run() -> float:
        clock = Clock(source.device)
        for _ in range(200):
            torch.exp(source, out=target)
        clock.mark("exp")
        return 200 * num / clock.seconds["exp"]

    return run


def _memory(spec: dict[str, Any], inputs: Inputs, works: dict[str, Work], reasons: dict[str, str]) -> dict[str, Any]:
    """Bytes beyond the inputs and the gradient, of the one implementation asked for."""
    device, dtype = inputs.student.device, inputs.student.dtype
    small = make_inputs(min(4, spec["tokens"]), spec["vocab"], spec["support"], dtype, device)
    for _ in _try(works, small, reasons):  # libraries, threads and their buffers are there from now on
        pass
    grad = inputs.student.numel() * inputs.student.element_size()
    extra = {name: max(0, _peak_growth(partial(_run, work, inputs), device) - grad) for name, work in works.items()}
    return {"extra": extra}


def _peak_growth(work: Callable[[], object], device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    _give_back_freed_memory()
    try:
        (PROC / "clear_refs").write_text("5")
        before = _status("VmRSS")
        work()
        return _status("VmHWM") - before
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def _give_back_freed_memory() -> None:
    """What the allocator keeps of freed memory would hide growth."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    time.sleep(0.05)


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", (PROC / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{PROC / 'status'} has no {field}")
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()

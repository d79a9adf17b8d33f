"""One case of the benchmark of the kernels, in a process of its own: rounds of times, or peak memory.

Peak memory of the CPU is the process's resident memory: Linux forgets its high-water mark when 5 is written to
/proc/self/clear_refs, so `VmHWM` afterwards is the peak of what follows. For CUDA it is what the caching allocator
handed out.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.benchmark import Timer

from scripts.bench.float64 import errors
from scripts.bench.gpu_stopwatch import Stopwatch
from scripts.bench.implementations import GROWTH, IMPLEMENTATIONS, Clock, Inputs, Result, Run, make_inputs

PROC = Path("/proc/self")
COPY_BYTES = 2**28
EXP_ELEMENTS_PER_THREAD = 2**16
"""Input and output take 512 KiB per thread: they stay in a core's own cache."""
MALLOC_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's malloc.h."""


@dataclass(frozen=True)
class Case:
    """What is measured: N tokens, the vocabulary, the support, and how."""

    device: str
    dtype: str
    tokens: int
    vocab: int
    support: int
    threads: int
    repeats: int
    head_tokens: int
    """Tokens of the first part, see `GROWTH`."""

    @property
    def logits_bytes(self) -> int:
        """Of one of the two tensors."""
        return self.tokens * self.vocab * getattr(torch, self.dtype).itemsize

    def inputs(self, tokens: int) -> Inputs:
        return make_inputs(tokens, self.vocab, self.support, getattr(torch, self.dtype), torch.device(self.device))


@dataclass
class Times:
    """Seconds and rates, a value a round."""

    seconds: dict[str, list[dict[str, float]]]
    """By implementation, of its stages."""
    head: dict[str, list[float]]
    """Of the pipeline on the first tokens."""
    copy: list[float]
    """Bytes per second of a copy, read and written ones counted."""
    exp: list[float]
    """Elements per second of torch.exp in fp32, from cache to cache."""
    load: float
    """Load average of the machine at the end."""
    errors: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """(gradient, entropy), see `float64.errors`."""
    not_run: dict[str, str] = field(default_factory=dict)


class CaseFailed(RuntimeError):
    """A process that ended without an answer."""


def in_a_process(measure: Callable[[Case, Sequence[str]], Any], case: Case, names: Sequence[str]) -> Any:
    """`measure(case, names)` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, case, names).result()
        except Exception as error:  # whatever ended it is why there is no figure
            raise CaseFailed(_reason(error)) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _start(case: Case) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(case.threads)


def _run(run: Run, inputs: Inputs) -> tuple[dict[str, float], Result]:
    gc.collect()
    clock = Clock(inputs.student.device)
    result = run(inputs, clock)
    clock.seconds.pop("setup", None)
    return clock.seconds, result


def times(case: Case, names: Sequence[str]) -> Times:
    """Rounds in which every implementation runs once; every second round in reverse order."""
    _start(case)
    inputs, measured = case.inputs(case.tokens), Times({}, {}, [], [], 0.0)
    for name in names:  # warms up, too
        try:
            _, result = _run(IMPLEMENTATIONS[name].run, inputs)
        except (ImportError, RuntimeError, ValueError) as error:  # a library that does not run here is a result, too
            measured.not_run[name] = _reason(error)
            continue
        measured.errors[name] = errors(inputs, result, IMPLEMENTATIONS[name].labels)
        measured.seconds[name] = []
        del result
    head, calls = inputs.at(slice(case.head_tokens)), min(8, -(-case.tokens // case.head_tokens))
    measured.head = {name: [] for name in GROWTH if name in measured.seconds}
    device, threads = inputs.student.device, torch.get_num_threads()
    copied = torch.ones(min(COPY_BYTES, case.logits_bytes) // 4, device=device)
    exponents = torch.linspace(
        -20.0, 0.0, EXP_ELEMENTS_PER_THREAD * threads if device.type == "cpu" else 2**22, device=device
    )
    copy, exp = _timer("target.copy_(source)", copied), _timer("torch.exp(source, out=target)", exponents)
    for number in range(case.repeats):
        for name in list(measured.seconds)[:: 1 if number % 2 == 0 else -1]:
            seconds, result = _run(IMPLEMENTATIONS[name].run, inputs)
            measured.seconds[name].append(seconds)
            del result
        for name, seconds_of in measured.head.items():
            few = [sum(_run(IMPLEMENTATIONS[name].run, head)[0].values()) for _ in range(calls)]
            seconds_of.append(statistics.median(few))
        measured.copy.append(2 * copied.nbytes / copy.timeit(3).mean)
        measured.exp.append(exponents.numel() / exp.timeit(200).mean)
    measured.load = psutil.getloadavg()[0]
    return measured


def _timer(statement: str, source: torch.Tensor) -> Timer:
    given = {"torch": torch, "source": source, "target": torch.zeros_like(source)}
    return Timer(statement, globals=given, num_threads=torch.get_num_threads())


def peak_memory(case: Case, names: Sequence[str]) -> int:
    """Bytes beyond the inputs and the gradient, of the one implementation named."""
    _start(case)
    (name,) = names
    # glibc then maps every larger buffer by itself: what is freed leaves the process at once, and hides no growth.
    if case.device == "cpu":
        ctypes.CDLL(None).mallopt(MALLOC_MMAP_THRESHOLD, 65536)
    inputs = case.inputs(case.tokens)
    # Libraries, threads and their buffers are there from now on.
    _run(IMPLEMENTATIONS[name].run, case.inputs(min(4, case.tokens)))
    growth = _peak_growth(lambda: _run(IMPLEMENTATIONS[name].run, inputs), inputs.student.device)
    return max(0, growth - case.logits_bytes)


def _peak_growth(work: Callable[[], object], device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        watch = Stopwatch(device)
        with watch:
            work()
        return watch.count.peak
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps of freed memory would hide growth
    (PROC / "clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", (PROC / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{PROC / 'status'} has no {field}")
    return int(found[1]) * 1024

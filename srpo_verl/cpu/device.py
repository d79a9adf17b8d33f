"""The `torch.<device>` namespace of the CPU platform: what veRL calls on `torch.cuda`, for a machine without one.

`torch.cpu` has neither memory statistics nor random-number functions, and veRL calls both unconditionally. Memory is
that of this process, so that veRL's `perf/*_memory_*` metrics mean something on the CPU as well.
"""

import resource

import psutil
import torch
from torch.cpu import Stream, StreamContext, current_stream, device_count, set_device, stream, synchronize

__all__ = [
    "Stream",
    "StreamContext",
    "current_device",
    "current_stream",
    "device_count",
    "empty_cache",
    "get_device_name",
    "get_rng_state",
    "ipc_collect",
    "is_available",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "set_device",
    "set_rng_state",
    "stream",
    "synchronize",
]


def is_available() -> bool:
    """A CPU is always there."""
    return True


def current_device() -> int:
    """Index of the current device: there is one."""
    return 0


def get_device_name(device: object = None) -> str:
    """Name that reports print."""
    return "cpu"


def memory_allocated(device: object = None) -> int:
    """Resident bytes of this process now."""
    return psutil.Process().memory_info().rss


def memory_reserved(device: object = None) -> int:
    """Same as `memory_allocated`: the host has no caching allocator to report on."""
    return memory_allocated()


def max_memory_allocated(device: object = None) -> int:
    """Largest resident size this process ever had, in bytes (`ru_maxrss` is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def max_memory_reserved(device: object = None) -> int:
    """Same as `max_memory_allocated`."""
    return max_memory_allocated()


def reset_peak_memory_stats(device: object = None) -> None:
    """The operating system keeps the peak; it cannot be reset from here."""


def mem_get_info(device: object = None) -> tuple[int, int]:
    """(available, total) bytes of the host's memory."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def empty_cache() -> None:
    """No cache to empty."""


def ipc_collect() -> None:
    """No inter-process device memory to collect."""


def get_rng_state(device: object = None) -> torch.Tensor:
    """State of the default generator."""
    return torch.get_rng_state()


def set_rng_state(new_state: torch.Tensor, device: object = None) -> None:
    """Restore the default generator."""
    torch.set_rng_state(new_state)


def manual_seed(seed: int) -> None:
    """Seed the default generator."""
    torch.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed the default generator: there is one device."""
    torch.manual_seed(seed)

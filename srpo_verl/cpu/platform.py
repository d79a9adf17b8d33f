"""veRL's platform object for machines without an accelerator."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from verl.plugin.platform import PlatformBase, PlatformRegistry, platform_manager, set_platform

from srpo_verl.cpu import device, is_asked


class CPUIndex(str):
    """The current device, readable in both ways veRL uses `get_device_id()`.

    As a value it is the device "cpu" (`tensor.to(x)`, `torch.device(x)`), where an int would mean an accelerator;
    inside an f-string, where veRL writes f"{device_name}:{device_id}", it is the index 0.
    """

    __slots__ = ()

    def __new__(cls) -> "CPUIndex":
        """Always the same value: there is one CPU device."""
        return super().__new__(cls, "cpu")

    def __format__(self, spec: str) -> str:
        """The index, as in "cpu:0"."""
        return format("0", spec)

    def __reduce__(self) -> tuple:
        """Survive pickling into Ray workers (`__new__` takes no argument)."""
        return (CPUIndex, ())


class PlatformCPU(PlatformBase):
    """Host CPU with gloo; workers are placed by logical Ray GPUs, as veRL's resource pools count only those."""

    @property
    def device_name(self) -> str:
        """Device type in torch's words."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """No vendor: engines are looked up by device alone."""
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        """Namespace that stands in for `torch.cuda`."""
        return device

    def is_available(self) -> bool:
        """A CPU is always there."""
        return True

    def current_device(self) -> CPUIndex:
        """See `CPUIndex`: an int would name an accelerator."""
        return CPUIndex()

    def device_count(self) -> int:
        """One per process."""
        return 1

    def set_device(self, device_index: int) -> None:
        """Nothing to select."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU work is synchronous."""

    def manual_seed(self, seed: int) -> None:
        """Seed the default generator."""
        device.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed the default generator."""
        device.manual_seed_all(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """The host allocator has no such settings."""

    def empty_cache(self) -> None:
        """No cache to empty."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """A CPU has no compute capability."""
        return (None, None)

    def communication_backend_name(self) -> str:
        """Collectives of CPU tensors."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Ray sets this one for the logical GPUs that place the workers."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        """No profiler ranges."""
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def ray_resource_name(self) -> str:
        """Resource pools are built from Ray's "GPU"; `ray_init.num_gpus` declares as many as there are ranks."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """No device variables to protect."""
        return []

    def is_ipc_supported(self) -> bool:
        """No device memory to share; weights travel through Ray's object store."""
        return False

    def cudart(self) -> Any:
        """No CUDA runtime."""
        return None


def install() -> None:
    """Register the platform and make it the current one, whatever veRL had chosen before. Idempotent."""
    if PlatformRegistry.get("cpu") is None:
        PlatformRegistry.register(platform="cpu")(PlatformCPU)
    if not isinstance(platform_manager._current_platform, PlatformCPU):
        # By the attribute first: `set_platform` warns of a replacement, and this one is wanted.
        platform_manager._current_platform = None
        set_platform(PlatformCPU())


if is_asked():
    # Whoever imports this module before verl has veRL load the plugin in the middle of it.
    install()

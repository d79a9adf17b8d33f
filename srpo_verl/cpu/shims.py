"""Every monkey-patch that training on the CPU needs, one function each.

A patch stands here only where no registry, subclass, configuration key or environment variable of veRL reaches the
line in question; tests/cpu/test_shims.py fails when the patched line changes or the patch is no longer needed.
"""

import functools
from importlib import import_module
from types import ModuleType

import torch
import torch.distributed.fsdp._init_utils as fsdp_init
from wrapt import register_post_import_hook

_INITIALIZER = "initialize_global_process_group_ray"


def _give_plain_gloo(module: ModuleType) -> None:
    original = getattr(module, _INITIALIZER)
    if not isinstance(original, functools.partial):
        setattr(module, _INITIALIZER, functools.partial(original, backend="cpu:gloo"))


def _take_plain_gloo(module: ModuleType) -> None:
    setattr(module, _INITIALIZER, getattr(import_module("verl.utils.distributed"), _INITIALIZER))


def use_plain_gloo() -> None:
    """Pass `backend="cpu:gloo"` to `verl.utils.distributed.initialize_global_process_group_ray`.

    Its default is f"cpu:gloo,{device}:{backend}", on the CPU "cpu:gloo,cpu:gloo", which torch rejects as a duplicate
    device. `TrainingWorker.__init__` calls it without a backend and offers no setting for one;
    `verl.workers.engine_workers` takes the function by name, perhaps before this is called.
    """
    register_post_import_hook(_give_plain_gloo, "verl.utils.distributed")
    register_post_import_hook(_take_plain_gloo, "verl.workers.engine_workers")


def _take_platform(module: ModuleType) -> None:
    module.device_name = "cpu"  # type: ignore[attr-defined]


def correct_device_taken_at_import() -> None:
    """Tell veRL's FSDP engines the device: they ask the platform once, when they are imported, perhaps before this."""
    register_post_import_hook(_take_platform, "verl.workers.engine.fsdp.transformer_impl")


def _accept_cpu_module_states(module_states: list[torch.Tensor]) -> None:
    """Accept every module state: gloo broadcasts CPU tensors."""


def allow_fsdp1_sync_of_cpu_states() -> None:
    """Let FSDP1 broadcast CPU parameters from rank 0 at construction.

    `FSDPEngine._build_fsdp_module` hard-codes `sync_module_states=True`, and it is needed (other ranks hold meta
    tensors); `torch.distributed.fsdp._init_utils._check_module_states_for_sync_module_states` refuses CPU tensors for
    it because NCCL could not send them. Gloo can. Neither veRL nor torch has a switch.
    """
    fsdp_init._check_module_states_for_sync_module_states = _accept_cpu_module_states


def _unpinned(self: torch.Tensor, device: object = None) -> torch.Tensor:
    """Return the tensor as it is: without an accelerator there is nothing to pin it for."""
    return self


def skip_memory_pinning() -> None:
    """Make `Tensor.pin_memory` return the tensor itself.

    FSDP1 with `CPUOffload(offload_params=True)` and FSDP2 with `CPUOffloadPolicy(pin_memory=True)`, both hard-coded by
    `FSDPEngine._build_fsdp_module` for forward-only engines (the reference policy), pin their shards; without an
    accelerator `pin_memory` raises "Cannot access accelerator device when none is available".
    """
    torch.Tensor.pin_memory = _unpinned  # type: ignore[method-assign, assignment]


def apply() -> None:
    """Apply every patch; applying twice changes nothing."""
    use_plain_gloo()
    correct_device_taken_at_import()
    allow_fsdp1_sync_of_cpu_states()
    skip_memory_pinning()

"""Every monkey-patch that training on the CPU needs, one function each.

A patch stands here only where no registry, subclass, configuration key or environment variable of veRL reaches the
line in question; tests/cpu/test_shims.py fails when the patched line changes or the patch is no longer needed.
"""

import functools

import torch
import torch.distributed.fsdp._init_utils as fsdp_init
import verl.utils.distributed as verl_distributed


def use_plain_gloo() -> None:
    """Pass `backend="cpu:gloo"` to `verl.utils.distributed.initialize_global_process_group_ray`.

    Its default is f"cpu:gloo,{device}:{backend}", on the CPU "cpu:gloo,cpu:gloo", which torch rejects as a duplicate
    device. `TrainingWorker.__init__` calls it without a backend and offers no setting for one. Must run before
    `verl.workers.engine_workers` is imported, which takes the function by name.
    """
    original = verl_distributed.initialize_global_process_group_ray
    if not isinstance(original, functools.partial):
        verl_distributed.initialize_global_process_group_ray = functools.partial(original, backend="cpu:gloo")


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
    allow_fsdp1_sync_of_cpu_states()
    skip_memory_pinning()

"""Each monkey-patch still meets the line it was written for, and is still needed."""

import functools
import inspect
import subprocess
import sys

import pytest
import torch
import torch.distributed.fsdp._init_utils as fsdp_init
import verl.utils.distributed as verl_distributed

from srpo_verl.cpu import shims


def unpatched(code):
    """Last line printed by `code` in a process without the plugin."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"VERL_USE_EXTERNAL_PLUGINS": "none", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_use_plain_gloo_is_applied():
    patched = verl_distributed.initialize_global_process_group_ray
    assert isinstance(patched, functools.partial)
    assert patched.keywords == {"backend": "cpu:gloo"}
    assert list(inspect.signature(patched.func).parameters) == ["timeout_second", "backend"]


def test_use_plain_gloo_is_needed():
    import verl.workers.engine_workers as engine_workers

    source = inspect.getsource(engine_workers.TrainingWorker.__init__)
    assert "initialize_global_process_group_ray(timeout_second=None)" in source
    assert engine_workers.initialize_global_process_group_ray is verl_distributed.initialize_global_process_group_ray
    assert 'f"cpu:gloo,{get_device_name()}:{get_nccl_backend()}"' in inspect.getsource(
        verl_distributed.initialize_global_process_group_ray.func
    )
    with pytest.raises(ValueError, match="Duplicate"):
        torch.distributed.distributed_c10d.BackendConfig("cpu:gloo,cpu:gloo")


def test_correct_device_taken_at_import_is_applied():
    from verl.workers.engine.fsdp import transformer_impl

    assert transformer_impl.device_name == "cpu"


def test_correct_device_taken_at_import_is_needed():
    """veRL asks the platform once; a process that imported its engines before the CPU was asked for has "cuda"."""
    from verl.workers.engine.fsdp import transformer_impl

    assert "\ndevice_name = get_device_name()\n" in inspect.getsource(transformer_impl)
    code = "from verl.workers.engine.fsdp import transformer_impl\nprint(transformer_impl.device_name)"
    assert unpatched(code) == "cuda"


def test_allow_fsdp1_sync_of_cpu_states_is_applied():
    assert fsdp_init._check_module_states_for_sync_module_states is shims._accept_cpu_module_states
    fsdp_init._check_module_states_for_sync_module_states([torch.zeros(1)])


def test_allow_fsdp1_sync_of_cpu_states_is_needed():
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    assert "sync_module_states=True" in inspect.getsource(FSDPEngine._build_fsdp_module)
    caller = inspect.getsource(fsdp_init._sync_module_params_and_buffers)
    assert "_check_module_states_for_sync_module_states(module_states)" in caller
    code = (
        "import torch\nfrom torch.distributed.fsdp import _init_utils as i\n"
        "try:\n    i._check_module_states_for_sync_module_states([torch.zeros(1)])\n    print('accepted')\n"
        "except ValueError as error:\n    print('sync_module_states' in str(error))"
    )
    assert unpatched(code) == "True"


def test_skip_memory_pinning_is_applied():
    tensor = torch.zeros(2)
    assert tensor.pin_memory() is tensor


def test_skip_memory_pinning_is_needed():
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    source = inspect.getsource(FSDPEngine._build_fsdp_module)
    assert "CPUOffloadPolicy(pin_memory=True)" in source
    assert "CPUOffload(offload_params=True)" in source
    code = (
        "import torch\n"
        "try:\n    torch.zeros(1).pin_memory()\n    print('pinned')\n"
        "except RuntimeError:\n    print('refused')"
    )
    assert unpatched(code) == "refused"

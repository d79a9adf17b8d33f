"""The CPU platform and its activation."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from verl.plugin.platform import PlatformRegistry, get_platform

from srpo_verl import cpu
from srpo_verl.cpu import device
from srpo_verl.cpu.platform import CPUIndex, PlatformCPU

needs_no_accelerator = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here")


def run_python(code, **env):
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env={**environment(), **env}, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def environment():
    return {key: value for key, value in os.environ.items() if not key.startswith("VERL_")}


@needs_no_accelerator
def test_importing_verl_activates_the_platform():
    assert isinstance(get_platform(), PlatformCPU)
    code = (
        "import verl, os; from verl.plugin.platform import get_platform; "
        "from verl.workers.rollout.base import get_rollout_class; "
        "from verl.workers.rollout.replica import get_rollout_replica_class; "
        "print(get_platform().device_name, os.environ['VERL_ENGINE_DEVICE'], get_rollout_class('hf').__name__, "
        "get_rollout_replica_class('hf').__name__)"
    )
    assert run_python(code) == "cpu cuda HFServerAdapter HFReplica"


def test_another_platform_is_respected():
    code = (
        "import verl, os; from verl.plugin.platform import get_platform; "
        "print(get_platform().device_name, os.environ.get('VERL_ENGINE_DEVICE'))"
    )
    assert run_python(code, VERL_PLATFORM="nvidia") == "cuda None"
    assert run_python(code, VERL_PLATFORM="cpu") == "cpu cuda"


def test_activation_rules(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    assert not cpu.is_wanted()
    monkeypatch.setenv("VERL_PLATFORM", "CPU")
    assert cpu.is_wanted()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    assert not cpu.is_wanted()
    monkeypatch.delenv("VERL_PLATFORM")
    assert cpu.is_wanted()


@needs_no_accelerator
def test_registering_twice_changes_nothing():
    import verl.utils.distributed as verl_distributed

    before = get_platform(), verl_distributed.initialize_global_process_group_ray
    cpu.register()
    assert (get_platform(), verl_distributed.initialize_global_process_group_ray) == before


def test_platform_implements_everything():
    platform = PlatformCPU()
    assert PlatformRegistry.get("cpu") is PlatformCPU
    assert platform.is_available()
    assert platform.device_module is device
    assert platform.ray_resource_options(1) == {"num_gpus": 1}
    assert platform.get_device_capability() == (None, None)


def test_device_index_reads_both_ways():
    index = PlatformCPU().current_device()
    assert torch.zeros(1).to(index).device.type == "cpu"
    assert torch.device(index) == torch.device("cpu")
    assert torch.empty(1, device=index).device.type == "cpu"
    assert f"cpu:{index}" == "cpu:0"
    assert pickle.loads(pickle.dumps(index)) == index
    assert isinstance(index, CPUIndex)


def test_device_module_supplies_what_torch_cpu_lacks():
    assert 0 < device.memory_allocated() <= device.max_memory_allocated() * 1.1
    available, total = device.mem_get_info()
    assert 0 < available <= total
    state = device.get_rng_state()
    first = torch.rand(3)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    device.manual_seed_all(3)
    expected = torch.rand(2)
    device.manual_seed(3)
    assert torch.equal(torch.rand(2), expected)
    assert all(hasattr(device, name) for name in device.__all__)

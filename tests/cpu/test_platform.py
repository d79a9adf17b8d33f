"""The CPU platform and its activation."""

import os
import pickle
import subprocess
import sys
from importlib.resources import files

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from verl.plugin.platform import PlatformRegistry, get_platform

from srpo_verl import cpu
from srpo_verl.cpu import device
from srpo_verl.cpu.callback import UseCPU, environment_of_run
from srpo_verl.cpu.platform import CPUIndex, PlatformCPU
from tests.config import compose


def run_python(code, **env):
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env={**environment(), **env}, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def environment():
    return {key: value for key, value in os.environ.items() if not key.startswith("VERL_")}


REPORT = (
    "from verl.plugin.platform import get_platform; import os\n"
    "from verl.workers.rollout.base import get_rollout_class\n"
    "from verl.workers.rollout.replica import get_rollout_replica_class\n"
    "import verl.utils.distributed as d, verl.workers.engine_workers as w\n"
    "from verl.workers.engine.fsdp import transformer_impl\n"
    "assert w.initialize_global_process_group_ray.keywords == {'backend': 'cpu:gloo'}\n"
    "assert d.initialize_global_process_group_ray.keywords == {'backend': 'cpu:gloo'}\n"
    "print(get_platform().device_name, transformer_impl.device_name, os.environ['VERL_PLATFORM'], "
    "os.environ['VERL_ENGINE_DEVICE'], get_rollout_class('hf').__name__, get_rollout_replica_class('hf').__name__)"
)
ASKED = "cpu cpu cpu cuda HFServerAdapter HFReplica"


def test_the_variable_asks_for_the_platform():
    assert run_python(REPORT, VERL_PLATFORM="CPU") == ASKED


@pytest.mark.parametrize(
    "already_imported",
    ["", "import verl.trainer.main_ppo", "import verl.workers.engine_workers, verl.trainer.ppo.v1"],
)
def test_activating_in_a_process_works_at_any_time(already_imported):
    """Values that veRL took when it was imported are corrected: the platform, functions taken by name, the device."""
    assert run_python(f"{already_imported}\nfrom srpo_verl import cpu; cpu.activate()\n{REPORT}") == ASKED


def test_another_platform_is_respected():
    code = (
        "import verl, os; from verl.plugin.platform import get_platform; "
        "print(get_platform().device_name, os.environ.get('VERL_ENGINE_DEVICE'))"
    )
    assert run_python(code, VERL_PLATFORM="nvidia") == "cuda None"


@pytest.mark.parametrize(("value", "asked"), [("cpu", True), (" CPU ", True), ("", False), ("nvidia", False)])
def test_what_counts_as_asking(monkeypatch, value, asked):
    monkeypatch.setenv("VERL_PLATFORM", value)
    assert cpu.is_asked() is asked
    monkeypatch.delenv("VERL_PLATFORM")
    assert not cpu.is_asked()


def test_a_contradiction_is_refused(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    with pytest.raises(RuntimeError, match=r"platform=cpu contradicts VERL_PLATFORM='nvidia'.*unset it"):
        cpu.activate()
    with pytest.raises(SystemExit, match="contradicts"):
        UseCPU().on_job_start(compose("srpo", "platform=cpu", "++ray_kwargs.ray_init.runtime_env.env_vars.A=b"))


def test_the_configuration_asks_in_the_driver_and_in_every_process_of_the_run(monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM")
    asked, called = compose("srpo", "platform=cpu"), []
    monkeypatch.setattr("srpo_verl.cpu.callback.activate", lambda: called.append(True))
    UseCPU().on_job_start(compose("srpo"))
    assert not called
    UseCPU().on_job_start(asked)
    assert called
    assert asked.ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM == "cpu"
    assert environment_of_run(asked)["VERL_PLATFORM"] == "cpu"
    assert "VERL_PLATFORM" not in environment_of_run(compose("srpo", "platform=gpu"))
    node = OmegaConf.load(str(files("srpo_verl.config").joinpath("platform/cpu.yaml")))
    assert get_class(node.hydra.callbacks.srpo_cpu._target_) is UseCPU


def test_activating_twice_changes_nothing():
    import verl.utils.distributed as verl_distributed

    before = get_platform(), verl_distributed.initialize_global_process_group_ray
    assert isinstance(before[0], PlatformCPU)
    cpu.activate()
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

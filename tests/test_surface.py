"""The package installed and not asked: veRL is what it would be without it. Looked at in fresh processes."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from srpo_verl.cpu import ENGINE_VARIABLE, PLATFORM_VARIABLE
from srpo_verl.installation import POLICY_VARIABLE, REGISTRATIONS

SNAPSHOT = Path(__file__).with_name("surface_snapshot.py")
MODULES_AT_MOST = 100
"""`import verl` may load so many more because of the plugin."""
OF_A_RUN = ["verl.trainer.main_ppo", "verl.trainer.ppo.v1", "verl.workers.engine_workers"]
MACHINES = ["plain CPU", "CPU-only actor of a GPU node", "GPU without nvidia-smi"]


def plain_environment():
    """This process's, without what could choose a platform or a plugin."""
    chosen = ("VERL_", "RAY_", "CUDA_VISIBLE_DEVICES")
    return {key: value for key, value in os.environ.items() if not key.startswith(chosen)}


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """{(machine, with plugin): snapshot}; two processes at a time, as each imports verl."""
    tools = tmp_path_factory.mktemp("tools")
    nvidia_smi = tools / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\nexit 0\n")
    nvidia_smi.chmod(nvidia_smi.stat().st_mode | stat.S_IXUSR)
    machines = {
        "plain CPU": ([], {"PATH": ""}),
        "CPU-only actor of a GPU node": ([], {"PATH": str(tools), "CUDA_VISIBLE_DEVICES": ""}),
        "GPU without nvidia-smi": (["--cuda"], {"PATH": ""}),
        "stock run": (OF_A_RUN, {"PATH": ""}),
    }
    found = {}
    for machine, (arguments, variables) in machines.items():
        processes = {}
        for plugin in (False, True):
            environment = plain_environment() | variables | ({} if plugin else {POLICY_VARIABLE: "none"})
            processes[plugin] = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(SNAPSHOT), *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        for plugin, process in processes.items():
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
            found[machine, plugin] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_import_verl_sees_the_machine_as_without_the_plugin(snapshots, machine):
    stock, ours = (snapshots[machine, plugin] for plugin in (False, True))
    assert "srpo_verl.plugin" in ours["loaded"]
    assert not any(name.startswith("srpo_verl") for name in stock["loaded"])
    assert {key: value for key, value in ours.items() if key != "loaded"} == {
        key: value for key, value in stock.items() if key != "loaded"
    }
    assert ours["platform"][:2] == ["PlatformCUDA", "cuda"]
    assert "cpu" not in ours["platform"][4]


def test_an_actor_without_gpu_gets_what_rollout_servers_of_a_gpu_node_need(snapshots):
    """Were the platform detected anew by the plugin, veRL's TaskRunner would hand on neither of the two."""
    _, _, protected, variables, _ = snapshots["CPU-only actor of a GPU node", True]["platform"]
    assert protected == ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]
    assert variables == {"NCCL_CUMEM_ENABLE": "0"}


@pytest.mark.parametrize("machine", MACHINES)
def test_import_verl_stays_light(snapshots, machine):
    stock, ours = (set(snapshots[machine, plugin]["loaded"]) for plugin in (False, True))
    assert stock <= ours
    more = ours - stock
    assert len(more) <= MODULES_AT_MOST, sorted(more)
    # Nothing of the framework is imported before veRL wants it itself.
    assert {name.partition(".")[0] for name in more} <= {"srpo_verl", "wrapt"}
    assert not any(name.startswith(("srpo_verl.verl_ext", "srpo_verl.cpu.")) for name in more)


def test_a_stock_run_differs_in_the_names_that_veRL_s_registries_hold(snapshots):
    """Trainer, worker and engines imported: every attribute of every module of veRL and torch is the stock one."""
    stock, ours = (snapshots["stock run", plugin] for plugin in (False, True))
    for key in ("platform", "variables"):
        assert ours[key] == stock[key]
    names = {entry.name for entry in REGISTRATIONS}
    for path, keys in stock["registries"].items():
        expected = names & {entry.name for entry in REGISTRATIONS if entry.registry == path}
        assert set(ours["registries"][path]) == set(keys) | expected
    assert ours["attributes"].keys() >= stock["attributes"].keys()
    for module, attributes in stock["attributes"].items():
        mine = ours["attributes"][module]
        # A package has its submodules as attributes, and the adapters import some that a stock run does not.
        added = {name for name in mine.keys() - attributes.keys() if f"{module}.{name}" in ours["attributes"]}
        assert {name: value for name, value in mine.items() if name not in added} == attributes, module


def test_the_comparison_can_fail():
    """A process that asks for the CPU platform differs in each of the things compared."""
    environment = plain_environment()
    command = [sys.executable, "-W", "ignore", str(SNAPSHOT), "verl.workers.rollout.base", "verl.utils.distributed"]
    outputs = [
        json.loads(
            subprocess.run(
                command, env=environment | more, capture_output=True, text=True, timeout=300, check=True
            ).stdout.splitlines()[-1]
        )
        for more in ({POLICY_VARIABLE: "none"}, {PLATFORM_VARIABLE: "cpu"})
    ]
    stock, asked = outputs
    assert asked["platform"][:2] == ["PlatformCPU", "cpu"]
    assert asked["variables"] == stock["variables"] | {ENGINE_VARIABLE: "cuda"}
    changed = {
        f"{module}.{name}"
        for module, attributes in stock["attributes"].items()
        for name, value in attributes.items()
        if asked["attributes"][module].get(name) != value
    }
    assert "class Tensor.pin_memory" in changed or "pin_memory" in asked["attributes"]["class Tensor"]
    assert {
        "torch.distributed.fsdp._init_utils._check_module_states_for_sync_module_states",
        "verl.plugin.platform.platform_manager._current_platform",
        "verl.utils.distributed.initialize_global_process_group_ray",
    } <= changed
    assert "('hf', 'async')" in asked["registries"]["verl.workers.rollout.base:_ROLLOUT_REGISTRY"]

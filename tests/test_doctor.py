"""The doctor: its checks on made-up findings, and the command in healthy and broken environments."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from srpo_verl import cpu, diagnosis, doctor
from srpo_verl.diagnosis import MISSING, NOTE, OK, Check, Device, PluginState
from srpo_verl.installation import INSTALL

CPU = Device("cpu", "CPU platform")
GPU = Device("cuda", "8 x H20")
NPU = Device("npu", "8 NPUs")
PIP_VERL = "pip install 'verl[verl-core]==0.9.1'"

# Hides TransferQueue, as if it were not installed: veRL's trainer needs it, `import verl` does not.
WITHOUT_TRANSFER_QUEUE = "sys.modules['transfer_queue'] = None; "
COMMANDS = {
    "healthy": ("", {}),
    "excluded": ("", {doctor.POLICY_VARIABLE: "none"}),
    "broken": (WITHOUT_TRANSFER_QUEUE, {}),
    "gpu": ("sys.argv += ['--platform', 'gpu']; ", {}),
}


@pytest.fixture(scope="module")
def outcomes():
    """(exit status, standard output) of the doctor in every environment; side by side, as each imports verl."""
    processes = {}
    # Tests of the CPU platform that ran before in this process have asked for it.
    unset = (doctor.POLICY_VARIABLE, cpu.PLATFORM_VARIABLE, cpu.ENGINE_VARIABLE)
    for name, (prelude, variables) in COMMANDS.items():
        environment = {key: value for key, value in os.environ.items() if key not in unset} | variables
        command = ["-m", "srpo_verl.doctor"]
        if prelude:
            command = ["-c", f"import sys; {prelude}from srpo_verl import doctor; sys.exit(doctor.main())"]
        processes[name] = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    return {name: (process.communicate(timeout=300)[0], process.returncode) for name, process in processes.items()}


def test_a_healthy_environment_exits_with_zero(outcomes):
    output, status = outcomes["healthy"]
    assert status == 0, output
    assert "ok      plugin import: `import verl` loads srpo_verl.plugin" in output
    assert "ok      registrations: all in veRL's registries" in output
    assert "\nmissing" not in output
    assert output.endswith("A run can start here with platform=cpu. For one on GPUs ask with --platform gpu.\n")


def test_a_run_on_gpus_cannot_start_where_there_is_none(outcomes):
    """The same environment, asked for GPUs."""
    output, status = outcomes["gpu"]
    assert status == 1, output
    assert "missing torch: " in output
    assert "sees no cuda device" in output
    assert "missing rollout engine: none for cuda" in output
    assert "A run cannot start here: torch, rollout engine" in output


def test_an_excluded_plugin_exits_with_one_and_names_the_variable(outcomes):
    output, status = outcomes["excluded"]
    assert status == 1, output
    assert "missing VERL_USE_EXTERNAL_PLUGINS: 'none' leaves srpo_verl out; unset it, or add srpo_verl to it" in output
    assert "missing registration: policy loss srpo is not in veRL's registry" in output
    assert "A run cannot start here: VERL_USE_EXTERNAL_PLUGINS, plugin import, registration." in output


def test_an_import_error_is_shown_with_its_place(outcomes):
    output, status = outcomes["broken"]
    assert status == 1, output
    assert "missing registrations: ModuleNotFoundError" in output
    assert "import transfer_queue as tq" in output
    assert "pip install TransferQueue" in output


@pytest.mark.parametrize(
    ("found", "status"), [((3, 9), NOTE), ((3, 10), OK), ((3, 11), OK), ((3, 12), OK), ((3, 13), NOTE)]
)
def test_python(found, status):
    assert diagnosis.check_python(found).status == status


def test_torch():
    assert diagnosis.check_torch("2.8.0", GPU, True) == Check(OK, "torch", "2.8.0, 8 x H20")
    assert diagnosis.check_torch("2.8.0", CPU, False).status == OK
    unseen = diagnosis.check_torch("2.8.0+cpu", CPU, True)
    assert unseen.status == NOTE
    assert "CUDA" in unseen.remedy
    absent = diagnosis.check_torch(None, ModuleNotFoundError("No module named 'torch'"), False)
    assert (absent.status, absent.remedy) == (MISSING, "pip install torch")
    broken = diagnosis.check_torch("2.8.0", OSError("libcudart.so.12: cannot open"), False)
    assert broken.status == MISSING
    assert "libcudart.so.12" in broken.detail
    assert "pip install" in broken.remedy
    assert diagnosis.check_torch("2.8.0", Device("cuda", "no cuda device", available=False), False).status == MISSING


def test_verl():
    assert diagnosis.check_verl("0.9.1", ["0.9.1"]).status == OK
    old = diagnosis.check_verl("0.8.0", ["0.9.0", "0.9.1"])
    assert (old.status, old.remedy) == (MISSING, PIP_VERL)
    assert "0.8.0, supported: 0.9.0, 0.9.1" in old.detail
    absent = diagnosis.check_verl(None, ["0.9.1"])
    assert (absent.status, absent.remedy) == (MISSING, PIP_VERL)


def test_entry_point():
    assert diagnosis.check_entry_point(["other.plugin", "srpo_verl.plugin"]).status == OK
    absent = diagnosis.check_entry_point(["other.plugin"])
    assert absent.status == MISSING
    assert absent.remedy == INSTALL


def test_no_remedy_names_a_distribution_that_is_on_no_index():
    """Anybody could register the name."""
    root = Path(diagnosis.__file__).parents[1]
    texts = [
        root / "README.md",
        *root.glob("srpo_verl/**/*.py"),
        *root.glob("docs/*.md"),
        *root.glob("recipes/**/*.md"),
    ]
    assert [path.name for path in texts if re.search("pip install[^\n]* srpo-verl", path.read_text())] == []


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (None, OK),
        ("auto", OK),
        (" AUTO ", OK),
        ("other, srpo_verl", OK),
        ("none", MISSING),
        ("", MISSING),
        ("other", MISSING),
        ("srpo-verl", MISSING),
    ],
)
def test_policy_is_read_as_verl_reads_it(value, status):
    assert diagnosis.check_policy(value).status == status


def raised(error):
    """The exception with a traceback, as an import leaves it."""
    try:
        raise error
    except type(error) as caught:
        return caught


def test_plugin_import():
    assert diagnosis.check_plugin(PluginState(loaded=True), PIP_VERL).status == OK
    assert diagnosis.check_plugin(PluginState(loaded=False), PIP_VERL).status == MISSING
    error = raised(ImportError("cannot import name 'register_trainer'"))
    shown = diagnosis.check_plugin(PluginState(loaded=False, error=error), PIP_VERL)
    assert shown.status == MISSING
    assert "cannot import name 'register_trainer'" in shown.detail
    assert "in raised: raise error" in shown.detail
    assert PIP_VERL in shown.remedy


@pytest.mark.parametrize(
    ("module", "remedy"),
    [("transfer_queue", "pip install TransferQueue"), ("ray.util", "pip install ray"), ("verl", PIP_VERL)],
)
def test_a_module_that_is_not_found_is_what_to_install(module, remedy):
    error = raised(ModuleNotFoundError(f"No module named {module!r}", name=module))
    check = diagnosis.check_plugin(PluginState(loaded=False, verl_error=error), PIP_VERL)
    assert (check.status, check.remedy) == (MISSING, remedy)
    assert str(check).endswith(f"\n          {remedy}")


def test_registrations():
    assert [check.status for check in diagnosis.check_registrations([])] == [OK]
    two = diagnosis.check_registrations(["trainer srpo", "policy loss srpo"])
    assert [check.status for check in two] == [MISSING, MISSING]
    assert "policy loss srpo" in two[1].detail
    assert all("pip install" in check.remedy for check in two)
    assert diagnosis.check_registrations(None)[0].status == MISSING
    (unknown,) = diagnosis.check_registrations(raised(ImportError("no such registry")))
    assert "no such registry" in unknown.detail


def test_dependencies():
    wanted = "!=5.6.0,<5.11,>=5.5.3"
    assert diagnosis.check_dependency("transformers", "5.10.4", wanted).status == OK
    refused = diagnosis.check_dependency("transformers", "5.6.0", wanted)
    assert refused.status == MISSING
    assert refused.remedy.startswith("pip install 'transformers")
    assert diagnosis.check_dependency("ray", "2.60.0", "").status == OK
    absent = diagnosis.check_dependency("TransferQueue", None, ">=0.1.10")
    assert (absent.status, absent.remedy) == (MISSING, "pip install 'TransferQueue>=0.1.10'")


def test_what_verl_asks_for_is_read_from_its_own_metadata():
    assert ">=" in doctor.requirement_of("verl", "TransferQueue")
    assert doctor.requirement_of("verl", "no-such-package") == ""
    assert doctor.requirement_of("no-such-package", "torch") == ""


def engine_checks(device, **versions):
    """By name."""
    return {check.name: check for check in diagnosis.check_engines(device, versions)}


def test_rollout_engines():
    assert engine_checks(CPU)["rollout engine"].detail.startswith("hf")
    assert engine_checks(CPU, vllm="0.11.0")["vllm"].status == NOTE
    assert engine_checks(GPU, vllm="0.11.0")["rollout engine"].status == OK
    assert engine_checks(GPU, sglang="0.5.5")["rollout engine"].detail == "actor_rollout_ref.rollout.name=sglang"
    none = engine_checks(GPU)
    assert none["rollout engine"].status == MISSING
    assert "docs/gpu.md" in none["rollout engine"].remedy
    assert {none[name].status for name in ("vllm", "sglang", "hf")} == {NOTE}
    assert engine_checks(NPU, vllm="0.11.0")["rollout engine"].status == MISSING
    assert engine_checks(NPU, vllm="0.11.0", vllm_ascend="0.11.0")["rollout engine"].status == OK
    assert engine_checks(ImportError("no torch"))["rollout engine"].status == MISSING


def test_an_optional_package_never_prevents_a_run():
    for found in (None, "0.9.0"):
        assert diagnosis.check_optional("math-verify", found, "scores", "pip install math-verify").status != MISSING
    absent = diagnosis.check_optional("math-verify", None, "scores", "pip install math-verify")
    assert absent.remedy == "pip install math-verify"


def test_flash_attn_is_needed_on_a_gpu_and_has_to_load():
    assert diagnosis.check_attention("2.8.3", None, GPU) == Check(OK, "flash-attn", "2.8.3")
    absent = diagnosis.check_attention(None, None, GPU)
    assert absent.status == MISSING
    assert "docs/gpu.md" in absent.remedy
    assert "attn_implementation=sdpa" in absent.remedy
    other_torch = diagnosis.check_attention("2.8.3", raised(ImportError("undefined symbol: _ZN3c10")), GPU)
    assert other_torch.status == MISSING
    assert "undefined symbol: _ZN3c10" in other_torch.detail
    for device in (CPU, NPU, ImportError("no torch")):
        assert diagnosis.check_attention(None, None, device).status == NOTE


def test_an_engine_for_another_torch_is_missing():
    assert diagnosis.check_engine_torch("vllm", "0.24.0", "==2.11.0", "2.11.0+cu130") is None
    assert diagnosis.check_engine_torch("vllm", "0.24.0", "", "2.13.0") is None
    assert diagnosis.check_engine_torch("vllm", "0.24.0", "==2.11.0", None) is None
    misfit = diagnosis.check_engine_torch("vllm", "0.24.0", "==2.11.0", "2.13.0")
    assert (misfit.status, misfit.detail) == (MISSING, "vllm 0.24.0 is built for torch ==2.11.0, found 2.13.0")


def test_engines_are_compared_with_torch_on_a_gpu_only(monkeypatch):
    monkeypatch.setattr(doctor, "requirement_of", lambda distribution, package: "==0.0.1")
    engines = {"vllm": "0.24.0", "sglang": None}
    assert [check.name for check in doctor.check_engine_fits(GPU, engines)] == ["vllm and torch"]
    assert doctor.check_engine_fits(CPU, engines) == []
    assert doctor.check_engine_fits(ImportError("no torch"), engines) == []


@pytest.mark.parametrize(
    ("platform", "variable", "driver", "kind", "available"),
    [
        (None, None, False, "cpu", True),
        # A machine with NVIDIA's driver is meant to train on its GPUs.
        (None, None, True, "cuda", False),
        ("gpu", None, False, "cuda", False),
        ("gpu", None, True, "cuda", False),
        ("cpu", None, True, "cpu", True),
        (None, "cpu", True, "cpu", True),
        (None, "cuda", False, "cuda", False),
        ("gpu", "npu", False, "npu", False),
    ],
)
def test_what_a_run_would_train_on(monkeypatch, platform, variable, driver, kind, available):
    """On a machine where torch sees no accelerator, as that of the tests."""
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    if variable is not None:
        monkeypatch.setenv("VERL_PLATFORM", variable)
    device = doctor.find_device(platform, driver)
    assert (device.kind, device.available) == (kind, available)


def test_a_driver_that_is_too_old_is_named(monkeypatch):
    import torch

    def warn():
        warnings.warn(
            "The NVIDIA driver on your system is too old (found version 12080).\nPlease update", stacklevel=1
        )
        return False

    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", warn)
    device = doctor.find_device(None, True)
    assert device.description.endswith("The NVIDIA driver on your system is too old (found version 12080).")
    assert diagnosis.check_torch("2.11.0", device, True).status == MISSING


def test_a_gpu_is_found_whatever_is_on_the_path(monkeypatch):
    import torch

    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H20")
    for platform in (None, "gpu"):
        assert doctor.find_device(platform, False) == Device("cuda", "8 x H20")
    assert doctor.find_device("cpu", True).kind == "cpu"


def test_every_failing_line_ends_with_its_remedy():
    failing = [
        diagnosis.check_verl(None, ["0.9.1"]),
        diagnosis.check_entry_point([]),
        diagnosis.check_policy("none"),
        diagnosis.check_plugin(PluginState(loaded=False), PIP_VERL),
        *diagnosis.check_registrations(["trainer srpo"]),
        *diagnosis.check_registrations(None),
        diagnosis.check_dependency("ray", None, ""),
        engine_checks(GPU)["rollout engine"],
    ]
    for check in failing:
        assert check.remedy
        assert str(check).endswith(check.remedy)
    assert diagnosis.verdict(failing, GPU).startswith("A run cannot start here: veRL, entry point")
    assert diagnosis.verdict([Check(NOTE, "vllm", "not installed")], GPU) == "A run can start here."
    assert "with platform=cpu" in diagnosis.verdict([Check(OK, "torch", "2.13.0")], CPU)

"""The doctor: its checks on made-up findings, and the command in healthy and broken environments."""

import os
import subprocess
import sys

import pytest

from srpo_verl import doctor
from srpo_verl.doctor import MISSING, NOTE, OK, Check, Device, PluginState

CPU = Device("cpu", "CPU platform")
GPU = Device("cuda", "8 x H20")
NPU = Device("npu", "8 NPUs")
PIP_VERL = "pip install 'verl[verl-core]==0.9.1'"

# Hides TransferQueue, as if it were not installed: veRL's trainer needs it, `import verl` does not.
WITHOUT_TRANSFER_QUEUE = "import sys; sys.modules['transfer_queue'] = None; "
COMMANDS = {
    "healthy": ("", {}),
    "excluded": ("", {doctor.POLICY_VARIABLE: "none"}),
    "broken": (WITHOUT_TRANSFER_QUEUE, {}),
}


@pytest.fixture(scope="module")
def outcomes():
    """(exit status, standard output) of the doctor in every environment; side by side, as each imports verl."""
    processes = {}
    for name, (prelude, variables) in COMMANDS.items():
        environment = {key: value for key, value in os.environ.items() if key != doctor.POLICY_VARIABLE} | variables
        command = ["-m", "srpo_verl.doctor"]
        if prelude:
            command = ["-c", f"{prelude}from srpo_verl import doctor; sys.exit(doctor.main())"]
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
    assert output.endswith("A run can start here.\n")


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
    assert doctor.check_python(found).status == status


def test_torch():
    assert doctor.check_torch("2.8.0", GPU, True) == Check(OK, "torch", "2.8.0, 8 x H20")
    assert doctor.check_torch("2.8.0", CPU, False).status == OK
    unseen = doctor.check_torch("2.8.0+cpu", CPU, True)
    assert unseen.status == NOTE
    assert "CUDA" in unseen.remedy
    absent = doctor.check_torch(None, ModuleNotFoundError("No module named 'torch'"), False)
    assert (absent.status, absent.remedy) == (MISSING, "pip install torch")
    broken = doctor.check_torch("2.8.0", OSError("libcudart.so.12: cannot open"), False)
    assert broken.status == MISSING
    assert "libcudart.so.12" in broken.detail
    assert "pip install" in broken.remedy
    assert doctor.check_torch("2.8.0", Device("cuda", "no cuda device", available=False), False).status == MISSING


def test_verl():
    assert doctor.check_verl("0.9.1", ["0.9.1"]).status == OK
    old = doctor.check_verl("0.8.0", ["0.9.0", "0.9.1"])
    assert (old.status, old.remedy) == (MISSING, PIP_VERL)
    assert "0.8.0, supported: 0.9.0, 0.9.1" in old.detail
    absent = doctor.check_verl(None, ["0.9.1"])
    assert (absent.status, absent.remedy) == (MISSING, PIP_VERL)


def test_entry_point():
    assert doctor.check_entry_point(["other.plugin", "srpo_verl.plugin"]).status == OK
    absent = doctor.check_entry_point(["other.plugin"])
    assert absent.status == MISSING
    assert "pip install srpo-verl" in absent.remedy


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
    assert doctor.check_policy(value).status == status


def raised(error):
    """The exception with a traceback, as an import leaves it."""
    try:
        raise error
    except type(error) as caught:
        return caught


def test_plugin_import():
    assert doctor.check_plugin(PluginState(loaded=True), PIP_VERL).status == OK
    assert doctor.check_plugin(PluginState(loaded=False), PIP_VERL).status == MISSING
    error = raised(ImportError("cannot import name 'register_trainer'"))
    shown = doctor.check_plugin(PluginState(loaded=False, error=error), PIP_VERL)
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
    check = doctor.check_plugin(PluginState(loaded=False, verl_error=error), PIP_VERL)
    assert (check.status, check.remedy) == (MISSING, remedy)
    assert str(check).endswith(f"\n          {remedy}")


def test_registrations():
    assert [check.status for check in doctor.check_registrations([])] == [OK]
    two = doctor.check_registrations(["trainer srpo", "policy loss srpo"])
    assert [check.status for check in two] == [MISSING, MISSING]
    assert "policy loss srpo" in two[1].detail
    assert all("pip install" in check.remedy for check in two)
    assert doctor.check_registrations(None)[0].status == MISSING
    (unknown,) = doctor.check_registrations(raised(ImportError("no such registry")))
    assert "no such registry" in unknown.detail


def test_dependencies():
    wanted = "!=5.6.0,<5.11,>=5.5.3"
    assert doctor.check_dependency("transformers", "5.10.4", wanted).status == OK
    refused = doctor.check_dependency("transformers", "5.6.0", wanted)
    assert refused.status == NOTE
    assert refused.remedy.startswith("pip install 'transformers")
    assert doctor.check_dependency("ray", "2.60.0", "").status == OK
    absent = doctor.check_dependency("TransferQueue", None, ">=0.1.10")
    assert (absent.status, absent.remedy) == (MISSING, "pip install 'TransferQueue>=0.1.10'")


def test_what_verl_asks_for_is_read_from_its_own_metadata():
    assert ">=" in doctor.verl_requirement("TransferQueue")
    assert doctor.verl_requirement("no-such-package") == ""


def engine_checks(device, **versions):
    """By name."""
    return {check.name: check for check in doctor.check_engines(device, versions)}


def test_rollout_engines():
    assert engine_checks(CPU)["rollout engine"].detail.startswith("hf")
    assert engine_checks(CPU, vllm="0.11.0")["vllm"].status == NOTE
    assert engine_checks(GPU, vllm="0.11.0")["rollout engine"].status == OK
    assert engine_checks(GPU, sglang="0.5.5")["rollout engine"].detail == "actor_rollout_ref.rollout.name=sglang"
    none = engine_checks(GPU)
    assert none["rollout engine"].status == MISSING
    assert "pip install 'srpo-verl[vllm]'" in none["rollout engine"].remedy
    assert {none[name].status for name in ("vllm", "sglang", "hf")} == {NOTE}
    assert engine_checks(NPU, vllm="0.11.0")["rollout engine"].status == MISSING
    assert engine_checks(NPU, vllm="0.11.0", vllm_ascend="0.11.0")["rollout engine"].status == OK
    assert engine_checks(ImportError("no torch"))["rollout engine"].status == MISSING


def test_optional_packages_never_prevent_a_run():
    for found, applies in ((None, True), (None, False), ("2.8.3", True)):
        assert doctor.check_optional("flash-attn", found, "speed", "pip install flash-attn", applies).status != MISSING
    assert (
        doctor.check_optional("flash-attn", None, "speed", "pip install flash-attn").remedy == "pip install flash-attn"
    )


def test_every_failing_line_ends_with_its_remedy():
    failing = [
        doctor.check_verl(None, ["0.9.1"]),
        doctor.check_entry_point([]),
        doctor.check_policy("none"),
        doctor.check_plugin(PluginState(loaded=False), PIP_VERL),
        *doctor.check_registrations(["trainer srpo"]),
        *doctor.check_registrations(None),
        doctor.check_dependency("ray", None, ""),
        engine_checks(GPU)["rollout engine"],
    ]
    for check in failing:
        assert check.remedy
        assert str(check).endswith(check.remedy)
    assert doctor.verdict(failing).startswith("A run cannot start here: veRL, entry point")
    assert doctor.verdict([Check(NOTE, "flash-attn", "not installed")]) == "A run can start here."

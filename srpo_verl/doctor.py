"""Can a run start here, and if not, what is to be done: ``python -m srpo_verl.doctor``.

veRL logs a plugin that fails to load at DEBUG level and goes on without it, so the cause of "unknown trainer mode
srpo" is otherwise invisible. The checks are functions of what was found; only `examine` looks at the machine.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from packaging.requirements import Requirement

from srpo_verl.cpu import PLATFORM_VARIABLE
from srpo_verl.installation import (
    ENTRY_POINT,
    PLUGIN,
    POLICY_VARIABLE,
    SUPPORTED_VERL,
    is_loaded_under,
    missing_registrations,
)

TRACEBACK_FRAMES = 3

OK, MISSING, NOTE = "ok", "missing", "note"


@dataclass(frozen=True)
class Check:
    """One line of the doctor's answer. No run can start while any check is `missing`; a `note` prevents nothing."""

    status: str
    name: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        # After a traceback, the remedy would be lost at the end of its last line.
        separator = f"\n{'':<10}" if "\n" in self.detail else "; "
        remedy = f"{separator}{self.remedy}" if self.remedy else ""
        return f"{self.status:<8}{self.name}: {self.detail}{remedy}"


@dataclass(frozen=True)
class Device:
    """What a run would train on: `kind` is cuda, npu or cpu."""

    kind: str
    description: str
    available: bool = True


@dataclass(frozen=True)
class PluginState:
    """How far `import verl` came with this plugin."""

    loaded: bool
    error: Exception | None = None
    verl_error: Exception | None = None


def installed_version(package: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _pip_verl(supported: Sequence[str]) -> str:
    return f"pip install 'verl[verl-core]=={supported[-1]}'"


def check_python(found: tuple[int, int]) -> Check:
    """The releases that the package declares; others may work."""
    text = f"{found[0]}.{found[1]}"
    if (3, 10) <= found <= (3, 12):
        return Check(OK, "python", text)
    return Check(NOTE, "python", f"{text} is untested", "make an environment with Python 3.10, 3.11 or 3.12")


def check_torch(found: str | None, device: Device | Exception, has_nvidia_driver: bool) -> Check:
    """torch, and the device it sees; `device`: the exception, where importing torch fails."""
    if found is None:
        return Check(MISSING, "torch", "not installed", "pip install torch")
    if isinstance(device, Exception):
        detail = f"{found}, but `import torch` fails: {describe_error(device)}"
        return Check(MISSING, "torch", detail, "pip install --force-reinstall torch")
    text = f"{found}, {device.description}"
    if not device.available:
        return Check(
            MISSING,
            "torch",
            text,
            "pip install a torch built for this device, or unset VERL_PLATFORM to use what is here",
        )
    if device.kind == "cpu" and has_nvidia_driver:
        return Check(
            NOTE,
            "torch",
            f"{text}, though an NVIDIA driver is installed",
            "for the GPU: pip install torch in a build for CUDA, and look at CUDA_VISIBLE_DEVICES",
        )
    return Check(OK, "torch", text)


def check_verl(found: str | None, supported: Sequence[str]) -> Check:
    """The adapters are written against the internals of certain releases."""
    if found is None:
        return Check(MISSING, "veRL", "not installed", _pip_verl(supported))
    if found not in supported:
        return Check(MISSING, "veRL", f"{found}, supported: {', '.join(supported)}", _pip_verl(supported))
    return Check(OK, "veRL", f"{found} (supported)")


def check_entry_point(values: Sequence[str]) -> Check:
    """`values`: the modules that the group verl.plugins names. Without ours, Ray's processes would not load it."""
    if PLUGIN in values:
        return Check(OK, "entry point", f"{PLUGIN} in group verl.plugins")
    return Check(
        MISSING,
        "entry point",
        f"{PLUGIN} is not in group verl.plugins, so no process of veRL loads it",
        "pip install srpo-verl (in a checkout: pip install -e .)",
    )


def check_policy(value: str | None) -> Check:
    """The variable that decides which entry points veRL loads, read as veRL reads it."""
    if value is None:
        return Check(OK, POLICY_VARIABLE, "not set, all plugins are loaded")
    if is_loaded_under(value):
        return Check(OK, POLICY_VARIABLE, repr(value))
    return Check(
        MISSING,
        POLICY_VARIABLE,
        f"{value!r} leaves {ENTRY_POINT} out",
        f"unset it, or add {ENTRY_POINT} to it",
    )


def describe_error(error: Exception) -> str:
    """The exception and the end of its traceback on one line each frame, innermost first."""
    frames = traceback.extract_tb(error.__traceback__)[-TRACEBACK_FRAMES:]
    places = [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in reversed(frames)]
    message = "".join(traceback.format_exception_only(error)).strip()
    return "\n".join([message, *(f"{'':<10}at {place}" for place in places)])


def _import_remedy(error: Exception, otherwise: str) -> str:
    """What pip can do about a failed import."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(("srpo_verl", "verl")):
        package = {"transfer_queue": "TransferQueue"}.get(error.name, error.name.partition(".")[0])
        return f"pip install {package}"
    return otherwise


def check_plugin(state: PluginState, verl_remedy: str) -> Check:
    """Whether `import verl` has loaded the plugin, and otherwise the exception that veRL keeps to itself."""
    if state.verl_error is not None:
        detail = f"`import verl` fails: {describe_error(state.verl_error)}"
        return Check(MISSING, "plugin import", detail, _import_remedy(state.verl_error, verl_remedy))
    if state.error is not None:
        detail = f"{PLUGIN} fails, unnoticed by veRL: {describe_error(state.error)}"
        remedy = _import_remedy(state.error, f"{verl_remedy}, then pip install --force-reinstall --no-deps srpo-verl")
        return Check(MISSING, "plugin import", detail, remedy)
    if not state.loaded:
        return Check(
            MISSING,
            "plugin import",
            f"veRL has not loaded {PLUGIN}",
            f"see the lines on the entry point (pip install srpo-verl) and on {POLICY_VARIABLE}",
        )
    return Check(OK, "plugin import", f"`import verl` loads {PLUGIN}")


def check_registrations(missing: Sequence[str] | Exception | None) -> list[Check]:
    """One line for each thing that veRL's registries lack; None or an exception: they could not be asked."""
    if missing is None:
        return [Check(MISSING, "registrations", "none, see plugin import", "pip install what that line names")]
    if isinstance(missing, Exception):
        remedy = _import_remedy(missing, "pip install --force-reinstall --no-deps srpo-verl")
        return [Check(MISSING, "registrations", describe_error(missing), remedy)]
    if not missing:
        return [Check(OK, "registrations", "all in veRL's registries")]
    remedy = "comes with the plugin: mend the lines above (pip install srpo-verl)"
    return [Check(MISSING, "registration", f"{name} is not in veRL's registry", remedy) for name in missing]


def check_dependency(package: str, found: str | None, wanted: str) -> Check:
    """A package that veRL or the plugin cannot do without; `wanted`: version specifier, possibly empty."""
    requirement = Requirement(f"{package}{wanted}")
    remedy = f"pip install '{requirement}'"
    if found is None:
        return Check(MISSING, package, "not installed", remedy)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(NOTE, package, f"{found}, veRL asks for {requirement.specifier}", remedy)
    return Check(OK, package, found)


def check_optional(package: str, found: str | None, use: str, remedy: str, applies: bool = True) -> Check:
    """A package that only some runs need."""
    if found is not None:
        return Check(OK, package, found)
    if not applies:
        return Check(NOTE, package, "not installed, not used on this device")
    return Check(NOTE, package, f"not installed, {use}", remedy)


def check_engines(device: Device | Exception, versions: dict[str, str | None]) -> list[Check]:
    """One line per rollout engine and one that says whether there is any for this device.

    `versions`: of vllm, vllm_ascend and sglang, None where one is not importable.
    """
    if isinstance(device, Exception):
        return [Check(MISSING, "rollout engine", "unknown without torch", "pip install torch")]
    if device.kind == "cpu":
        checks = [
            Check(NOTE, name, f"{versions.get(name) or 'not installed'}, not used on the CPU")
            for name in ("vllm", "sglang")
        ]
        return [
            *checks,
            Check(OK, "hf", "part of srpo_verl"),
            Check(OK, "rollout engine", "hf; choose it by platform=cpu"),
        ]
    usable, checks = [], []
    for name in ("vllm", "sglang"):
        found = versions.get(name)
        if found is None:
            checks.append(Check(NOTE, name, "not installed", f"pip install 'srpo-verl[{name}]'"))
        elif name == "vllm" and device.kind == "npu" and versions.get("vllm_ascend") is None:
            checks.append(Check(NOTE, name, f"{found}, but without vllm-ascend", "pip install vllm-ascend"))
        else:
            usable.append(name)
            checks.append(Check(OK, name, found))
    checks.append(Check(NOTE, "hf", f"for the CPU only, not used on {device.kind}"))
    if usable:
        names = " or ".join(f"actor_rollout_ref.rollout.name={name}" for name in usable)
        return [*checks, Check(OK, "rollout engine", names)]
    remedy = "pip install 'srpo-verl[vllm]' or pip install 'srpo-verl[sglang]'"
    return [*checks, Check(MISSING, "rollout engine", f"none for {device.kind}", remedy)]


def find_device() -> Device | Exception:
    """What a run would train on: VERL_PLATFORM if it is set, else the accelerator, else the CPU by platform=cpu.

    The exception, where importing torch fails.
    """
    try:
        import torch
    except Exception as error:
        return error

    chosen = os.environ.get(PLATFORM_VARIABLE, "").strip().lower()
    because = f" ({PLATFORM_VARIABLE}={chosen})" if chosen else ""
    if chosen == "cpu":
        return Device("cpu", f"CPU platform with {os.cpu_count()} cores{because}")
    if torch.cuda.is_available() and chosen != "npu":
        count = torch.cuda.device_count()
        names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
        return Device("cuda", f"{count} x {names}{because}")
    if hasattr(torch, "npu") and torch.npu.is_available():
        return Device("npu", f"{torch.npu.device_count()} NPUs{because}")
    if not chosen:
        return Device("cpu", f"no accelerator; platform=cpu trains on {os.cpu_count()} cores")
    kind = "npu" if chosen == "npu" else "cuda"
    return Device(kind, f"no {kind} device{because}", available=False)


class _SwallowedError(logging.Handler):
    """Catches the exception that veRL logs at DEBUG level when a plugin fails to load."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.error: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        if ENTRY_POINT in arguments:
            self.error = next((value for value in arguments if isinstance(value, Exception)), None)


def import_verl() -> PluginState:
    """Import verl as every process of a run does, and see what became of the plugin."""
    logger, handler = logging.getLogger("verl"), _SwallowedError()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        import verl  # noqa: F401
    except Exception as error:
        return PluginState(loaded=False, verl_error=error)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
    return PluginState(loaded=PLUGIN in sys.modules, error=handler.error)


def find_missing_registrations(state: PluginState) -> list[str] | Exception | None:
    """What veRL's registries lack; the first adapter's exception, where it cannot be imported."""
    if state.verl_error is not None or state.error is not None:
        return None
    try:
        missing = missing_registrations()
        return next((error for error in missing.values() if error is not None), list(missing))
    except Exception as error:
        return error


def _importable_version(module: str, package: str) -> str | None:
    """Version of an engine without importing it: that would take a minute, and claim GPU memory."""
    spec = importlib.util.find_spec(module)
    # A directory that happens to be called so is a namespace package without an origin.
    return None if spec is None or spec.origin is None else installed_version(package) or "of unknown version"


def verl_requirement(package: str) -> str:
    """The version specifier that the installed veRL has for a package; empty where it has none."""
    try:
        lines = requires("verl") or []
    except PackageNotFoundError:
        return ""
    specifiers = [
        str(requirement.specifier)
        for requirement in map(Requirement, lines)
        if requirement.name.lower() == package.lower() and str(requirement.specifier)
    ]
    return specifiers[0] if specifiers else ""


def examine() -> list[Check]:
    """Look at this environment; importing verl takes some seconds."""
    supported = SUPPORTED_VERL
    device = find_device()
    state = import_verl()
    on_gpu = isinstance(device, Device) and device.kind == "cuda"
    attention = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    engines: dict[str, str | None] = {
        "vllm": _importable_version("vllm", "vllm"),
        "vllm_ascend": _importable_version("vllm_ascend", "vllm-ascend"),
        "sglang": _importable_version("sglang", "sglang"),
    }
    return [
        check_python(sys.version_info[:2]),
        check_torch(installed_version("torch"), device, shutil.which("nvidia-smi") is not None),
        check_verl(installed_version("verl"), supported),
        check_entry_point([point.value for point in entry_points(group="verl.plugins")]),
        check_policy(os.environ.get(POLICY_VARIABLE)),
        check_plugin(state, _pip_verl(supported)),
        *check_registrations(find_missing_registrations(state)),
        *(
            check_dependency(package, installed_version(package), verl_requirement(package))
            for package in ("TransferQueue", "ray", "transformers")
        ),
        *check_engines(device, engines),
        check_optional(
            "flash-attn",
            installed_version("flash-attn"),
            "veRL's default attention",
            f"pip install flash-attn, or run with {attention}",
            applies=on_gpu,
        ),
        check_optional(
            "math-verify", installed_version("math-verify"), "the math verifier needs it", "pip install math-verify"
        ),
    ]


def verdict(checks: Sequence[Check]) -> str:
    """The last line."""
    failed = [check.name for check in checks if check.status == MISSING]
    if failed:
        return f"A run cannot start here: {', '.join(dict.fromkeys(failed))}."
    return "A run can start here."


def main() -> int:
    """Exit status 0 where a run could start, else 1."""
    with warnings.catch_warnings():
        # veRL warns of every training engine that is not installed; this plugin uses none of these.
        warnings.simplefilter("ignore")
        checks = examine()
    for check in checks:
        print(check)
    print(verdict(checks))
    return 1 if any(check.status == MISSING for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())

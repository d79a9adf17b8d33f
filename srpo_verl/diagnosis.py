"""The doctor's checks, each a function of what was found; `doctor.py` does the finding."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement

from srpo_verl.installation import (
    ENTRY_POINT,
    INSTALL,
    PLUGIN,
    POLICY_VARIABLE,
    REINSTALL,
    PluginError,
    is_loaded_under,
)

TRACEBACK_FRAMES = 3
GUIDE = "docs/gpu.md has the commands"
SDPA = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"

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


def pip_verl(supported: Sequence[str]) -> str:
    """The command that installs the latest supported release."""
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
        remedy = f"install a driver and a torch for it ({GUIDE}); for a run with platform=cpu: --platform cpu"
        return Check(MISSING, "torch", text, remedy)
    if device.kind == "cpu" and has_nvidia_driver:
        return Check(
            NOTE,
            "torch",
            f"{text}, though an NVIDIA driver is installed",
            "for the GPU: pip install torch in a build for CUDA, and look at CUDA_VISIBLE_DEVICES",
        )
    return Check(OK, "torch", text)


def check_verl(found: str | None, supported: Sequence[str], judge: Callable[[str], str | None] | None = None) -> Check:
    """The adapters are written against the internals of certain releases; `judge` says of another whether it fits."""
    if found is None:
        return Check(MISSING, "veRL", "not installed", pip_verl(supported))
    if found not in supported and judge is not None:
        try:
            return Check(NOTE, "veRL", judge(found) or found)
        except PluginError as error:
            return Check(MISSING, "veRL", str(error), pip_verl(supported))
    if found not in supported:
        return Check(MISSING, "veRL", f"{found}, supported: {', '.join(supported)}", pip_verl(supported))
    return Check(OK, "veRL", f"{found} (supported)")


def check_entry_point(values: Sequence[str]) -> Check:
    """`values`: the modules that the group verl.plugins names. Without ours, Ray's processes would not load it."""
    if PLUGIN in values:
        return Check(OK, "entry point", f"{PLUGIN} in group verl.plugins")
    return Check(
        MISSING,
        "entry point",
        f"{PLUGIN} is not in group verl.plugins, so no process of veRL loads it",
        INSTALL,
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
        remedy = _import_remedy(state.error, f"{verl_remedy}, then {REINSTALL}")
        return Check(MISSING, "plugin import", detail, remedy)
    if not state.loaded:
        return Check(
            MISSING,
            "plugin import",
            f"veRL has not loaded {PLUGIN}",
            f"see the lines on the entry point and on {POLICY_VARIABLE}, or: {INSTALL}",
        )
    return Check(OK, "plugin import", f"`import verl` loads {PLUGIN}")


def check_registrations(missing: Sequence[str] | Exception | None) -> list[Check]:
    """One line for each thing that veRL's registries lack; None or an exception: they could not be asked."""
    if missing is None:
        return [Check(MISSING, "registrations", "none, see plugin import", "pip install what that line names")]
    if isinstance(missing, Exception):
        remedy = _import_remedy(missing, REINSTALL)
        return [Check(MISSING, "registrations", describe_error(missing), remedy)]
    if not missing:
        return [Check(OK, "registrations", "all in veRL's registries")]
    remedy = f"comes with the plugin: mend the lines above, or: {INSTALL}"
    return [Check(MISSING, "registration", f"{name} is not in veRL's registry", remedy) for name in missing]


def check_dependency(package: str, found: str | None, wanted: str) -> Check:
    """A package that veRL or the plugin cannot do without; `wanted`: version specifier, possibly empty."""
    requirement = Requirement(f"{package}{wanted}")
    remedy = f"pip install '{requirement}'"
    if found is None:
        return Check(MISSING, package, "not installed", remedy)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(MISSING, package, f"{found}, veRL asks for {requirement.specifier}", remedy)
    return Check(OK, package, found)


def check_attention(found: str | None, error: Exception | None, device: Device | Exception) -> Check:
    """flash-attn, veRL's default attention; `error`: what importing it raised, on a GPU."""
    name, otherwise = "flash-attn", f"{GUIDE}; or train with {SDPA}"
    if isinstance(device, Exception) or device.kind != "cuda":
        return Check(NOTE, name, f"{found or 'not installed'}, used on NVIDIA GPUs only")
    if found is None:
        return Check(MISSING, name, "not installed, and it is veRL's default attention", otherwise)
    if error is not None:
        # Most often it was compiled against another release of torch.
        return Check(MISSING, name, f"{found}, but importing it fails: {describe_error(error)}", otherwise)
    return Check(OK, name, found)


def check_engine_torch(engine: str, found: str, wanted: str, torch: str | None) -> Check | None:
    """A rollout engine is compiled for one release of torch; None where that is the one here.

    Args:
        engine, found: name and version of the installed engine.
        wanted: the specifier that its own metadata has for torch, possibly empty.
        torch: the installed torch.
    """
    requirement = Requirement(f"torch{wanted}")
    if torch is None or requirement.specifier.contains(torch, prereleases=True):
        return None
    detail = f"{engine} {found} is built for torch {requirement.specifier}, found {torch}"
    return Check(MISSING, f"{engine} and torch", detail, f"pip install '{requirement}' and what fits it; {GUIDE}")


def check_optional(package: str, found: str | None, use: str, remedy: str) -> Check:
    """A package that only some runs need."""
    if found is not None:
        return Check(OK, package, found)
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
            checks.append(Check(NOTE, name, "not installed", GUIDE))
        elif name == "vllm" and device.kind == "npu" and versions.get("vllm_ascend") is None:
            checks.append(Check(NOTE, name, f"{found}, but without vllm-ascend", "pip install vllm-ascend"))
        else:
            usable.append(name)
            checks.append(Check(OK, name, found))
    checks.append(Check(NOTE, "hf", f"for the CPU only, not used on {device.kind}"))
    if usable:
        names = " or ".join(f"actor_rollout_ref.rollout.name={name}" for name in usable)
        return [*checks, Check(OK, "rollout engine", names)]
    remedy = f"install vllm or sglang, in the versions of constraints/: {GUIDE}"
    return [*checks, Check(MISSING, "rollout engine", f"none for {device.kind}", remedy)]


def verdict(checks: Sequence[Check], device: Device | Exception) -> str:
    """The last line: can a run start, and on what."""
    failed = [check.name for check in checks if check.status == MISSING]
    if failed:
        return f"A run cannot start here: {', '.join(dict.fromkeys(failed))}."
    if isinstance(device, Device) and device.kind == "cpu":
        return "A run can start here with platform=cpu. For one on GPUs ask with --platform gpu."
    return "A run can start here."

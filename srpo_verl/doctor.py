"""Can a run start here, and if not, what is to be done: ``python -m srpo_verl doctor``.

veRL logs a plugin that fails to load at DEBUG level and goes on without it, so the cause of "unknown trainer mode
srpo" is otherwise invisible. The checks are in `diagnosis.py`; this module looks at the machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from packaging.requirements import Requirement

from srpo_verl.cpu import PLATFORM_VARIABLE
from srpo_verl.diagnosis import (
    MISSING,
    Check,
    Device,
    PluginState,
    check_attention,
    check_dependency,
    check_engine_torch,
    check_engines,
    check_entry_point,
    check_optional,
    check_plugin,
    check_policy,
    check_python,
    check_registrations,
    check_torch,
    check_verl,
    pip_verl,
    verdict,
)
from srpo_verl.installation import (
    ACCEPT_VARIABLE,
    ENTRY_POINT,
    PLUGIN,
    POLICY_VARIABLE,
    SUPPORTED_VERL,
    judge_release,
    missing_registrations,
)


def installed_version(package: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_device(platform: str | None, has_nvidia_driver: bool) -> Device | Exception:
    """What a run would train on; the exception, where importing torch fails.

    Args:
        platform: "cpu" or "gpu" as asked for. None: VERL_PLATFORM if it is set, else an accelerator where torch sees
            one or the machine has NVIDIA's driver, else the CPU.
        has_nvidia_driver: whether nvidia-smi is on PATH.
    """
    try:
        import torch
    except Exception as error:
        return error

    chosen = os.environ.get(PLATFORM_VARIABLE, "").strip().lower()
    because = f" ({PLATFORM_VARIABLE}={chosen})" if chosen else ""
    if platform == "cpu" or (platform is None and chosen == "cpu"):
        return Device("cpu", f"platform=cpu trains on {os.cpu_count()} cores{because}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sees_cuda = torch.cuda.is_available()
    if sees_cuda and chosen != "npu":
        count = torch.cuda.device_count()
        names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
        return Device("cuda", f"{count} x {names}{because}")
    if hasattr(torch, "npu") and torch.npu.is_available():
        return Device("npu", f"{torch.npu.device_count()} NPUs{because}")
    if platform is None and not chosen and not has_nvidia_driver:
        return Device("cpu", f"no accelerator; platform=cpu trains on {os.cpu_count()} cores")
    kind = "npu" if chosen == "npu" else "cuda"
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    said = "".join(f": {str(warning.message).splitlines()[0]}" for warning in caught[-1:])
    return Device(kind, f"{build}, sees no {kind} device{because}{said}", available=False)


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


def requirement_of(distribution: str, package: str) -> str:
    """The version specifier that an installed distribution has for a package; empty where it has none."""
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        return ""
    specifiers = [
        str(requirement.specifier)
        for requirement in map(Requirement, lines)
        if requirement.name.lower() == package.lower() and str(requirement.specifier)
    ]
    return specifiers[0] if specifiers else ""


def find_import_error(module: str) -> Exception | None:
    """What importing a module raises."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return error
    return None


def check_engine_fits(device: Device | Exception, engines: Mapping[str, str | None]) -> list[Check]:
    """One line for every rollout engine that was compiled for another torch; none on the CPU, which uses neither."""
    if isinstance(device, Exception) or device.kind == "cpu":
        return []
    fits = (
        check_engine_torch(name, found, requirement_of(name, "torch"), installed_version("torch"))
        for name in ("vllm", "sglang")
        if (found := engines[name])
    )
    return [check for check in fits if check is not None]


def examine(platform: str | None = None) -> tuple[list[Check], Device | Exception]:
    """Look at this environment, for a run on "cpu" or "gpu" (None: what it has); importing verl takes some seconds."""
    has_driver = shutil.which("nvidia-smi") is not None
    device = find_device(platform, has_driver)
    state = import_verl()
    on_gpu = isinstance(device, Device) and device.kind == "cuda" and device.available
    engines: dict[str, str | None] = {
        "vllm": _importable_version("vllm", "vllm"),
        "vllm_ascend": _importable_version("vllm_ascend", "vllm-ascend"),
        "sglang": _importable_version("sglang", "sglang"),
    }
    flash_attn = installed_version("flash-attn")
    return [
        check_python(sys.version_info[:2]),
        check_torch(installed_version("torch"), device, has_driver),
        check_verl(
            installed_version("verl"),
            SUPPORTED_VERL,
            lambda found: judge_release(found, os.environ.get(ACCEPT_VARIABLE)),
        ),
        check_entry_point([point.value for point in entry_points(group="verl.plugins")]),
        check_policy(os.environ.get(POLICY_VARIABLE)),
        check_plugin(state, pip_verl(SUPPORTED_VERL)),
        *check_registrations(find_missing_registrations(state)),
        *(
            check_dependency(package, installed_version(package), requirement_of("verl", package))
            for package in ("TransferQueue", "ray", "tensordict", "transformers")
        ),
        *check_engines(device, engines),
        *check_engine_fits(device, engines),
        check_attention(flash_attn, find_import_error("flash_attn") if on_gpu and flash_attn else None, device),
        check_optional(
            "math-verify", installed_version("math-verify"), "the math verifier needs it", "pip install math-verify"
        ),
    ], device


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 where a run could start on what is asked for, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl doctor",
        description="Can a run start here?",
        epilog="examples:\n  python -m srpo_verl doctor\n  python -m srpo_verl doctor --platform gpu",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--platform",
        choices=("cpu", "gpu"),
        help="what the run is to train on; left out: GPUs where torch sees one or NVIDIA's driver is installed, "
        "else the CPU",
    )
    platform = parser.parse_args(arguments).platform
    with warnings.catch_warnings():
        # veRL warns of every training engine that is not installed; this plugin uses none of these.
        warnings.simplefilter("ignore")
        checks, device = examine(platform)
    for check in checks:
        print(check)
    print(verdict(checks, device))
    return 1 if any(check.status == MISSING for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())

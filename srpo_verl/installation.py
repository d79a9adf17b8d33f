"""What this package puts into veRL, said once: names, releases, registrations; and whether it is all in place.

Imports no veRL by itself: the configuration, the doctor and the plugin read it before veRL is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from srpo_verl.upstream import Difference, compare
from srpo_verl.upstream.source import Source

SUPPORTED_VERL = ("0.9.1",)
"""Releases of veRL whose internals the adapters were written against and tested with."""

PLUGIN = "srpo_verl.plugin"
"""The module that the entry point names."""

ENTRY_POINT = "srpo_verl"
"""The entry point's name in the group verl.plugins."""

CHECKOUT = "in a checkout of this package, which is on no package index"
INSTALL = f"pip install . {CHECKOUT}"
REINSTALL = f"pip install --force-reinstall --no-deps . {CHECKOUT}"
"""Remedies that name no distribution: on an index anybody could take the name."""

POLICY_VARIABLE = "VERL_USE_EXTERNAL_PLUGINS"
"""veRL's variable that says which entry points a process loads."""

ACCEPT_VARIABLE = "SRPO_VERL_ACCEPT_VERL"
"""Names a release of veRL that is accepted although it is not supported: on one's own responsibility."""

TRAINER_MODE = "srpo"
"""`trainer.v1.trainer_mode`: the trainer's name in veRL's registry."""

ESTIMATOR = "srpo"
"""`algorithm.adv_estimator`: the advantage estimator's name in veRL's registry."""

POLICY_LOSS = "srpo"
"""`actor_rollout_ref.actor.policy_loss.loss_mode`: the policy loss's name in veRL's registry."""

STUDENT_TYPE = "srpo_student"
TEACHER_TYPE = "srpo_teacher"
"""Model types under which veRL's EngineRegistry holds the two engines."""


class PluginError(RuntimeError):
    """The plugin cannot work in this environment; the message says what to do."""


@dataclass(frozen=True)
class Registration:
    """One entry in a registry of veRL, and who makes it."""

    what: str
    name: str
    registry: str
    """module:attribute of the dictionary."""
    after: str
    """The module or package of veRL whose import shall bring the entry with it."""
    adapter: str
    """The module of this package that registers when it is imported."""


_CORE, _V1, _ENGINES = "verl.trainer.ppo.core_algos", "verl.trainer.ppo.v1", "verl.workers.engine"

REGISTRATIONS = (
    Registration(
        "advantage estimator", ESTIMATOR, f"{_CORE}:ADV_ESTIMATOR_REGISTRY", _CORE, "srpo_verl.verl_ext.estimator"
    ),
    Registration("policy loss", POLICY_LOSS, f"{_CORE}:POLICY_LOSS_REGISTRY", _CORE, "srpo_verl.verl_ext.loss"),
    Registration("trainer", TRAINER_MODE, f"{_V1}.trainer_base:TRAINER_REGISTRY", _V1, "srpo_verl.verl_ext.trainer"),
    Registration(
        "engine", STUDENT_TYPE, f"{_ENGINES}.base:EngineRegistry._engines", _ENGINES, "srpo_verl.verl_ext.engine"
    ),
    Registration(
        "engine", TEACHER_TYPE, f"{_ENGINES}.base:EngineRegistry._engines", _ENGINES, "srpo_verl.verl_ext.engine"
    ),
)


def is_loaded_under(policy: str | None) -> bool:
    """Whether veRL loads this plugin under a value of VERL_USE_EXTERNAL_PLUGINS, read as `verl/__init__.py` does."""
    policy = "auto" if policy is None else policy.strip().lower()
    return policy == "auto" or (policy != "none" and ENTRY_POINT in [name.strip() for name in policy.split(",")])


def missing_registrations() -> dict[str, Exception | None]:
    """What veRL's registries lack of this plugin, with the exception of the adapter's import where it has one."""
    missing = []
    for entry in REGISTRATIONS:
        import_module(entry.after)
        if entry.name not in _registry(entry.registry):
            missing.append(entry)
    # Only now: an adapter that can be imported registers.
    return {f"{entry.what} {entry.name}": _import_error(entry.adapter) for entry in missing}


def _registry(path: str) -> Any:
    module, _, attributes = path.partition(":")
    found: Any = import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def _import_error(module: str) -> Exception | None:
    try:
        import_module(module)
    except Exception as error:
        return error
    return None


def installed_source() -> Source:
    """The sources of the veRL that this Python would import; veRL is not imported for it."""
    spec = PathFinder.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise PluginError("veRL is installed, but its files are not found")
    return Source(Path(next(iter(spec.submodule_search_locations))))


def judge_release(found: str, accepted: str | None) -> str | None:
    """A warning about the installed release of veRL, None where it is supported.

    A newer release runs if everything this package depends on inside veRL is written there as in the supported one.

    Args:
        found: the installed release.
        accepted: value of SRPO_VERL_ACCEPT_VERL.
    Raises:
        PluginError: it cannot be used; names what differs, and the remedy.
    """
    if found in SUPPORTED_VERL:
        return None
    remedy = f"pip install 'verl[verl-core]=={SUPPORTED_VERL[-1]}'"
    if accepted is not None and accepted.strip() == found:
        return f"veRL {found} is not supported and was accepted by {ACCEPT_VARIABLE}; supported: {SUPPORTED_VERL[-1]}"
    override = f"or set {ACCEPT_VARIABLE}={found} to run with it all the same"
    if not _is_newer(found):
        raise PluginError(
            f"veRL {found} is installed, supported: {', '.join(SUPPORTED_VERL)} and newer ones that agree with it; "
            f"{remedy}, {override}"
        )
    differences = compare(installed_source())
    if differences:
        raise PluginError(
            f"veRL {found} is installed, and {len(differences)} of the things in it that this package depends on are "
            f"not those of {SUPPORTED_VERL[-1]}; {remedy}, {override}\n{_listed(differences)}"
        )
    return f"veRL {found} is newer than the tested {SUPPORTED_VERL[-1]}; all that this package depends on is the same"


def _is_newer(found: str) -> bool:
    try:
        return Version(found) > Version(SUPPORTED_VERL[-1])
    except InvalidVersion:
        return False


def _listed(differences: list[Difference]) -> str:
    return "\n".join(f"  {difference}" for difference in differences)


def check_installation(environment: Mapping[str, str] | None = None) -> None:
    """Raise PluginError unless veRL is a release that fits and its processes will have all registrations.

    Args:
        environment: variables that a process of the run will have; by default those of this process. What this
            process has imported says nothing about the others, which start from veRL's entry point.
    """
    try:
        found = version("verl")
    except PackageNotFoundError:
        raise PluginError(f"veRL is not installed; pip install 'verl[verl-core]=={SUPPORTED_VERL[-1]}'") from None
    environment = os.environ if environment is None else environment
    warning = judge_release(found, environment.get(ACCEPT_VARIABLE))
    if warning is not None:
        print(f"srpo_verl: {warning}", file=sys.stderr)
    if not any(point.value == PLUGIN for point in entry_points(group="verl.plugins")):
        raise PluginError(
            f"srpo_verl is importable but not installed, so Ray's processes would not load it; {INSTALL}"
        )
    policy = environment.get(POLICY_VARIABLE)
    if not is_loaded_under(policy):
        raise PluginError(
            f"{POLICY_VARIABLE}={policy!r} leaves {ENTRY_POINT} out, so no process of veRL would load it; unset it, "
            f"or add {ENTRY_POINT} to it"
        )
    missing = missing_registrations()
    if missing:
        causes = "; ".join(dict.fromkeys(f"{type(error).__name__}: {error}" for error in missing.values() if error))
        raise PluginError(
            f"not registered in veRL: {', '.join(missing)}{f' ({causes})' if causes else ''}. "
            "`python -m srpo_verl doctor` shows where the import fails."
        )

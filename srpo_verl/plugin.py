"""Entry point of the group `verl.plugins`: importing this module makes the plugin known to veRL.

veRL loads it at the end of `import verl`, in every process that imports verl, whoever's run that is. So it does next
to nothing: the adapters are imported when veRL itself imports the registry they belong to, and the CPU platform only
where it is asked for (srpo_verl/cpu). What came of it is told by `installation.check_installation`, which the
configurations of this package call before Ray starts, and by `python -m srpo_verl doctor`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from wrapt import register_post_import_hook

from srpo_verl import cpu
from srpo_verl.errors import ConfigError
from srpo_verl.installation import REGISTRATIONS

logger = logging.getLogger(__name__)

ENTRY = "verl.trainer.main_ppo"
OWN_CONFIGURATION = "srpo_verl.config"

_hooked: set[tuple[str, str]] = set()


def _importing(adapter: str) -> Callable[[ModuleType], None]:
    """A hook that imports an adapter. It never raises: the import of veRL that it follows may be anybody's."""

    def hook(module: ModuleType) -> None:
        try:
            import_module(adapter)
        except Exception as error:
            logger.warning("%s does not work with this veRL, SRPO is not available: %r", adapter, error)

    return hook


def arguments_of_own_run(command: Sequence[str]) -> list[str] | None:
    """What follows veRL's entry point in a command that composes a configuration of this package; None for others."""
    command = list(command)
    if ENTRY not in command or not any(OWN_CONFIGURATION in argument for argument in command):
        return None
    return command[command.index(ENTRY) + 1 :]


def check_own_command() -> None:
    """End this process where it is the driver of a run of ours whose command names what there is not.

    veRL imports this module before Hydra composes; later nothing of ours could give a better message than Hydra's.
    """
    arguments = arguments_of_own_run(sys.orig_argv)
    if arguments is None:
        return
    # In such a driver alone: it imports Hydra, which a run does next.
    try:
        import_module("srpo_verl.config.command_line").check_arguments(arguments)
    except ConfigError as error:
        sys.exit(f"srpo_verl: {error}")


def register() -> None:
    """Have every adapter imported right after the part of veRL that it extends. Idempotent."""
    if cpu.is_asked():
        cpu.activate()
    for after, adapter in sorted({(entry.after, entry.adapter) for entry in REGISTRATIONS} - _hooked):
        _hooked.add((after, adapter))
        register_post_import_hook(_importing(adapter), after)


check_own_command()
register()

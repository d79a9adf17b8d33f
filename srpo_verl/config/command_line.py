"""Names on veRL's command line that this package does not have, said before Hydra meets them.

Hydra would send a misspelt key of the `srpo` group on to `+srpo.typo=1`, and name no choices for `--config-name`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from srpo_verl.config.methods import BASE, named
from srpo_verl.config.schema import check_key
from srpo_verl.errors import ConfigError

CONFIG_PATH = "pkg://srpo_verl.config"


def check_arguments(arguments: Sequence[str]) -> None:
    """Check what follows `python -m verl.trainer.main_ppo`; raises ConfigError. Syntax is left to Hydra."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--config-dir", "-cd")
    known, others = parser.parse_known_args(list(arguments))
    if known.config_path != CONFIG_PATH:
        return
    if known.config_dir is None:  # else the name may be that of a file there
        check_config_name(known.config_name)
    check_keys([each for each in others if not each.startswith("-")])


def check_keys(overrides: Sequence[str]) -> None:
    """Raise ConfigError for a key of the `srpo` group that does not exist."""
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue  # Hydra's message is about the very place
        if not override.is_delete() and override.key_or_group.startswith("srpo."):
            check_key(override.key_or_group, override.value())


def check_config_name(name: str | None) -> None:
    """Raise ConfigError for a configuration that does not exist; the message has the choices."""
    names = named()
    choices = f"choose one of {', '.join(names)}"
    if name is None:
        raise ConfigError("--config-name", None, f"is missing; {choices}")
    stem = name.removesuffix(".yaml")
    if stem == BASE:
        raise ConfigError("--config-name", name, f"is what all configurations share, and none by itself; {choices}")
    if stem not in names:
        close = "".join(f"did you mean {match}? " for match in get_close_matches(stem, names, n=1))
        raise ConfigError("--config-name", name, f"there is no such configuration; {close}{choices}")

"""Check a run without starting it: ``python -m srpo_verl check --config-name srpo <hydra overrides>``.

Takes what veRL's command takes after `python -m verl.trainer.main_ppo`, composes the same configuration, and prints
what a run would check before Ray starts, with what was in order: settings, model, data, GPUs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from srpo_verl.config.command_line import CONFIG_PATH, check_config_name, check_keys
from srpo_verl.errors import ConfigError
from srpo_verl.installation import PluginError
from srpo_verl.preflight.findings import ERROR, OK, Finding, errors, last_line, render, write
from srpo_verl.preflight.run import examine
from srpo_verl.start import check_start


def compose_run(config_path: str, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes for veRL's command; settings of Hydra itself are not part of the job's configuration."""
    own = [override for override in overrides if not override.lstrip("+~").startswith("hydra.")]
    if not config_path.startswith("pkg://"):
        with initialize_config_dir(str(Path(config_path).resolve()), version_base=None):
            return compose(config_name, own)
    with initialize_config_module(config_path.removeprefix("pkg://").replace("/", "."), version_base=None):
        return compose(config_name, own)


def check(config_path: str, config_name: str, overrides: Sequence[str]) -> list[Finding]:
    """Everything that is found; a configuration that does not compose or is refused ends the list."""
    try:
        if config_path == CONFIG_PATH:
            check_config_name(config_name)
            check_keys(overrides)
        config = compose_run(config_path, config_name, overrides)
    except ConfigError as error:
        return [Finding(ERROR, "configuration", str(error))]
    except (HydraException, OmegaConfBaseException) as error:
        # The message of a wrong override does not always name it.
        override = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return [Finding(ERROR, "configuration", f"{override}{error}{cause}")]
    try:
        srpo = check_start(config)
    except PluginError as error:
        return [Finding(ERROR, "installation", str(error))]
    except (ConfigError, OmegaConfBaseException) as error:
        return [Finding(ERROR, "configuration", str(error))]
    return [Finding(OK, "configuration", config_name), *examine(config, srpo)]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if a run could start, else 1; 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl check",
        description=(__doc__ or "").splitlines()[0],
        epilog="examples:\n"
        "  python -m srpo_verl check --config-name srpo base_model=qwen3_8b benchmark=chemistry\n"
        "  python -m srpo_verl check --config-name grpo platform=cpu data.train_files=train.parquet ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-path", "-cp", default=CONFIG_PATH, help="default: %(default)s")
    parser.add_argument("--config-name", "-cn", required=True, help="srpo, grpo, sdpo, ...")
    parser.add_argument("--out", type=Path, help="write the whole list into this file, one JSON object per line")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for a run")
    arguments = parser.parse_intermixed_args(argv)
    findings = check(arguments.config_path, arguments.config_name, arguments.overrides)
    print(render(findings))
    if arguments.out is not None:
        write(findings, arguments.out)
        print(f"the whole list: {arguments.out}")
    if errors(findings):
        print(last_line(findings), flush=True)
        return 1
    print("srpo_verl: nothing that would stop this run was found")
    return 0


if __name__ == "__main__":
    sys.exit(main())

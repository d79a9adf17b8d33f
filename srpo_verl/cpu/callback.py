"""The driver's side of `platform=cpu`: named in config/platform/cpu.yaml, so that stock veRL has it as well."""

from __future__ import annotations

import os
import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from srpo_verl.cpu import PLATFORM_VARIABLE, activate


def environment_of_run(config: DictConfig) -> dict[str, str]:
    """The variables of a Ray process of this run, as far as this process and the configuration determine them."""
    added = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    return {**os.environ, **{str(key): str(value) for key, value in added.items()}}


class UseCPU(Callback):
    """Hydra callback: activates the CPU platform in the driver where the composed configuration asks for it.

    veRL's driver has been imported by then, and has perhaps chosen a platform already; it is replaced before veRL
    adapts `trainer.device` to it.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if environment_of_run(config).get(PLATFORM_VARIABLE, "").strip().lower() != "cpu":
            return
        try:
            activate()
        except Exception as error:
            # Hydra turns exceptions of callbacks into warnings, and the run would go on with another platform.
            sys.exit(f"srpo_verl: the CPU platform cannot be used: {error}")

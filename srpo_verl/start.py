"""The start of a run, in the driver: everything is checked after Hydra has composed and before Ray starts."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from srpo_verl.attempts import log_path
from srpo_verl.config.check import check_run
from srpo_verl.config.schema import SrpoConfig
from srpo_verl.console import MARK, everything_into, is_quiet
from srpo_verl.cpu.callback import UseCPU, environment_of_run
from srpo_verl.errors import ConfigError
from srpo_verl.installation import PluginError, check_installation
from srpo_verl.preflight import VARIABLE
from srpo_verl.preflight.failure import end_with_cause
from srpo_verl.preflight.run import before_ray
from srpo_verl.stall import take_word
from srpo_verl.stopping import stop_on_sigterm

TASK_EVENTS, TASK_EVENTS_KEPT = "RAY_task_events_max_num_task_in_gcs", 1_000
"""By default Ray's server keeps the events of 100,000 tasks, and grows for thousands of steps; `ray list tasks` shows
100 of them if it is not asked for more."""


def output_of_run(config: DictConfig) -> Path:
    """The file for what the processes of a run print: beside its log, absolute."""
    log = log_path(config.trainer.project_name, config.trainer.experiment_name, environment_of_run(config))
    return log.absolute().with_suffix(".out")


class ConfigCheck(Callback):
    """Hydra callback named in every configuration of this package.

    It runs in the driver after composition and before `ray.init`. Hydra turns exceptions of callbacks into warnings,
    so the check ends the process itself, with the message alone.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            srpo = check_start(config)
            before_ray(config, srpo)
            stop_on_sigterm(config.trainer.default_local_dir)
            os.environ.setdefault(TASK_EVENTS, str(TASK_EVENTS_KEPT))
            if is_quiet() and HydraConfig.initialized():
                output = output_of_run(config)
                everything_into(output)
                print(f"{MARK}starting Ray and the workers; all that they print is in {output}", flush=True)
        except (ConfigError, PluginError, OmegaConfBaseException) as error:
            sys.exit(f"srpo_verl: {error}")
        except Exception:
            # Hydra would go on with a warning.
            traceback.print_exc()
            sys.exit(f"srpo_verl: the check itself failed, see above; {VARIABLE}=off leaves out model, data and GPUs")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Let a run that failed end with its cause; Hydra would end it with advice about tracebacks."""
        if job_return.status == JobStatus.FAILED:
            end_with_cause(job_return._return_value, take_word(Path(config.trainer.default_local_dir)))


def check_start(config: DictConfig) -> SrpoConfig:
    """Activate the CPU platform where it is asked for, then check installation, configuration and what veRL will pick.

    Raises PluginError or ConfigError.
    """
    UseCPU().on_job_start(config)
    environment = environment_of_run(config)
    check_installation(environment)
    srpo = check_run(config)
    # Here, because it imports veRL's trainer and engines, and not before the platform is decided.
    import_module("srpo_verl.verl_ext.selection").check_selection(config, environment)
    return srpo

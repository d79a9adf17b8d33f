"""A run before it starts: its composed configuration, and whether model and GPUs can take it."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from srpo_verl.config.check import check_run
from srpo_verl.config.schema import SrpoConfig
from srpo_verl.launch.cells import ENTRY
from srpo_verl.launch.gpu_memory import engine_needs, estimate
from srpo_verl.launch.model_sizes import ModelSizes, find_sizes
from srpo_verl.preflight.model import ModelFacts, check_model


class DoesNotFit(ValueError):
    """A configuration that composes, and that the model or the GPUs cannot take."""


@dataclass(frozen=True)
class Checked:
    """A configuration that passed, and what was seen."""

    config: DictConfig
    summary: str


def compose_command(command: Sequence[str]) -> DictConfig:
    """What Hydra composes for `python -m verl.trainer.main_ppo --config-path .. --config-name NAME OVERRIDES`."""
    entry, overrides = list(command[:7]), command[7:]
    if entry[1:6] != ENTRY[1:]:
        raise ValueError(f"not a launch command of this package: {shlex.join(command)}")
    with initialize_config_module(entry[4].removeprefix("pkg://"), version_base=None):
        # Settings of Hydra itself are not part of the job's configuration.
        return compose(entry[6], [override for override in overrides if not override.startswith("hydra.")])


def check(command: Sequence[str], device_gib: float) -> Checked:
    """Compose a launch command and check it as the start of a run does, then against the model and the GPUs.

    Raises:
        DoesNotFit: the context or the memory. Whatever Hydra, this package's check or veRL's raise, otherwise.
    """
    # Here, because veRL is slow to import, and `--help` needs none of it.
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = compose_command(command)
    srpo = check_run(config)
    with contextlib.redirect_stdout(io.StringIO()):
        validate_config(config, need_reference_policy(config), need_critic(config))
    sizes = find_sizes(config.actor_rollout_ref.model.path)
    if sizes is None:
        return Checked(config, "model unknown: context and memory not checked")
    check_model(config, srpo, ModelFacts(sizes.vocab, sizes.max_positions))
    context = _check_context(config, srpo, sizes)
    if config.trainer.device == "cpu":
        return Checked(config, context)
    return Checked(config, f"{context}, {_check_memory(config, srpo, sizes, device_gib)}")


def _check_context(config: DictConfig, srpo: SrpoConfig, sizes: ModelSizes) -> str:
    response = config.data.max_response_length
    lengths = {"data.max_prompt_length": config.data.max_prompt_length}
    if srpo.uses_teacher:
        lengths["srpo.demonstration.max_prompt_tokens"] = srpo.demonstration.max_prompt_tokens
    for key, prompt in lengths.items():
        if prompt + response > sizes.native_context:
            raise DoesNotFit(
                f"{key}={prompt} and data.max_response_length={response} make {prompt + response} tokens, more than "
                f"the model's native context of {sizes.native_context}; lower one of them"
            )
    return f"{max(lengths.values()) + response} of {sizes.native_context} tokens"


def _check_memory(config: DictConfig, srpo: SrpoConfig, sizes: ModelSizes, device_gib: float) -> str:
    rollout = config.actor_rollout_ref.rollout
    share, needed = rollout.gpu_memory_utilization * device_gib, engine_needs(config, sizes)
    if needed > share:
        raise DoesNotFit(
            f"actor_rollout_ref.rollout.gpu_memory_utilization={rollout.gpu_memory_utilization} is {share:.1f} GiB of "
            f"{device_gib:g}, and weights with one longest sequence take {needed:.1f}; raise it or "
            "rollout.tensor_model_parallel_size"
        )
    phases = estimate(config, srpo, sizes, device_gib)
    too_large = [
        f"{phase.total:.1f} GiB in the phase '{phase.name}' "
        f"({', '.join(f'{name} {size:.1f}' for name, size in phase.parts.items() if size)})"
        for phase in phases
        if phase.total > device_gib
    ]
    if too_large:
        raise DoesNotFit(
            f"of {device_gib:g} GiB per GPU about {' and '.join(too_large)}; see 'When memory is short' in "
            "docs/sizes.md"
        )
    return "GiB per GPU about " + ", ".join(f"{phase.name} {phase.total:.0f}" for phase in phases)

"""A cell before it runs: its launch command, its composed configuration, and whether model and GPUs can take it."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from scripts.cells import Cell
from scripts.memory import engine_needs, estimate
from scripts.models import ModelFacts, find_facts
from srpo_verl.config.check import check_run
from srpo_verl.config.schema import SrpoConfig
from srpo_verl.preflight.model import ModelFacts as Limits
from srpo_verl.preflight.model import check_model

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "paper"
CONFIG_MODULE = "pkg://srpo_verl.config"


class DoesNotFit(ValueError):
    """A configuration that composes, and that the model or the GPUs cannot take."""


@dataclass(frozen=True)
class Checked:
    """A configuration that passed, and what was seen."""

    config: DictConfig
    summary: str


def launcher(method: str) -> Path:
    """The recipe of a method."""
    return RECIPES / f"{method}.sh"


def read_launcher(path: Path, extra: Sequence[str] = ()) -> list[str]:
    """The command a launcher executes when it is given `extra` arguments."""
    text = path.read_text().split("exec ", 1)[1]
    arguments = shlex.split(text.replace("\\\n", " "))
    if arguments[-1] != "$@":
        raise ValueError(f'{path} does not end in "$@"')
    return [*arguments[:-1], *extra]


def compose_command(command: Sequence[str]) -> DictConfig:
    """What Hydra composes for `python -m verl.trainer.main_ppo --config-path .. --config-name NAME OVERRIDES`."""
    entry, overrides = list(command[:7]), command[7:]
    if entry[1:6] != ["-m", "verl.trainer.main_ppo", "--config-path", CONFIG_MODULE, "--config-name"]:
        raise ValueError(f"not a launch command of this package: {shlex.join(command)}")
    with initialize_config_module(CONFIG_MODULE.removeprefix("pkg://"), version_base=None):
        # Settings of Hydra itself are not part of the job's configuration.
        return compose(entry[6], [override for override in overrides if not override.startswith("hydra.")])


def cell_overrides(cell: Cell, folder: Path, data: Path, extra: Sequence[str] = ()) -> list[str]:
    """What a cell adds to its launcher. `folder`: of the run. `data`: root of the benchmarks' parquet files."""
    return [
        f"base_model={cell.model}",
        f"benchmark={cell.benchmark}",
        f"data.root={data}",
        f"data.seed={cell.seed}",
        f"actor_rollout_ref.rollout.seed={cell.seed}",
        f"trainer.default_local_dir={folder}/checkpoints",
        f"hydra.run.dir={folder}/hydra",
        *extra,
    ]


def check(command: Sequence[str], device_gib: float) -> Checked:
    """Compose a launch command and check it as the start of a run does, then against the model and the GPUs.

    Raises:
        DoesNotFit: the context or the memory. Whatever Hydra, this package's check or veRL's raise, otherwise.
    """
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = compose_command(command)
    srpo = check_run(config)
    with contextlib.redirect_stdout(io.StringIO()):
        validate_config(config, need_reference_policy(config), need_critic(config))
    facts = find_facts(config.actor_rollout_ref.model.path)
    if facts is None:
        return Checked(config, "model unknown: context and memory not checked")
    check_model(config, srpo, Limits(facts.vocab, facts.max_positions))
    context = _check_context(config, srpo, facts)
    if config.trainer.device == "cpu":
        return Checked(config, context)
    return Checked(config, f"{context}, {_check_memory(config, srpo, facts, device_gib)}")


def _check_context(config: DictConfig, srpo: SrpoConfig, facts: ModelFacts) -> str:
    response = config.data.max_response_length
    lengths = {"data.max_prompt_length": config.data.max_prompt_length}
    if srpo.uses_teacher:
        lengths["srpo.demonstration.max_prompt_tokens"] = srpo.demonstration.max_prompt_tokens
    for key, prompt in lengths.items():
        if prompt + response > facts.native_context:
            raise DoesNotFit(
                f"{key}={prompt} and data.max_response_length={response} make {prompt + response} tokens, more than "
                f"the model's native context of {facts.native_context}; lower one of them"
            )
    return f"{max(lengths.values()) + response} of {facts.native_context} tokens"


def _check_memory(config: DictConfig, srpo: SrpoConfig, facts: ModelFacts, device_gib: float) -> str:
    rollout = config.actor_rollout_ref.rollout
    share, needed = rollout.gpu_memory_utilization * device_gib, engine_needs(config, facts)
    if needed > share:
        raise DoesNotFit(
            f"actor_rollout_ref.rollout.gpu_memory_utilization={rollout.gpu_memory_utilization} is {share:.1f} GiB of "
            f"{device_gib:g}, and weights with one longest sequence take {needed:.1f}; raise it or "
            "rollout.tensor_model_parallel_size"
        )
    phases = estimate(config, srpo, facts, device_gib)
    too_large = [
        f"{phase.total:.1f} GiB in the phase '{phase.name}' "
        f"({', '.join(f'{name} {size:.1f}' for name, size in phase.parts.items() if size)})"
        for phase in phases
        if phase.total > device_gib
    ]
    if too_large:
        raise DoesNotFit(
            f"of {device_gib:g} GiB per GPU about {' and '.join(too_large)}; see 'When memory is short' in "
            "docs/reproduce.md"
        )
    return "GiB per GPU about " + ", ".join(f"{phase.name} {phase.total:.0f}" for phase in phases)

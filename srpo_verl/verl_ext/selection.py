"""Which classes and functions veRL will run for a composed configuration: what it picks, not which words were written.

Every choice is made by veRL's own code: its registries, and the method in which its trainer names the worker class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.workers.engine import EngineRegistry

from srpo_verl.errors import ConfigError
from srpo_verl.installation import ESTIMATOR, POLICY_LOSS, STUDENT_TYPE, TEACHER_TYPE, TRAINER_MODE
from srpo_verl.verl_ext.engine import SrpoEngine, SrpoTeacherEngine
from srpo_verl.verl_ext.estimator import group_relative_advantage
from srpo_verl.verl_ext.loss import grpo_branch_loss
from srpo_verl.verl_ext.trainer import SrpoTrainer
from srpo_verl.verl_ext.worker import SrpoWorker

ENGINE_VARIABLES = ("VERL_ENGINE_DEVICE", "VERL_ENGINE_VENDOR")
"""Variables by which veRL lets the environment choose among the engines of a name."""


def check_selection(config: DictConfig, environment: Mapping[str, str]) -> None:
    """Raise ConfigError where veRL would run a trainer, worker, engine, estimator or policy loss that is not ours.

    Args:
        config: the composed configuration, not changed.
        environment: variables of the run's processes.
    """
    mode, strategy = config.trainer.v1.trainer_mode, config.actor_rollout_ref.actor.strategy
    estimator, loss_mode = config.algorithm.adv_estimator, config.actor_rollout_ref.actor.policy_loss.loss_mode

    trainer = _picked("trainer.v1.trainer_mode", mode, lambda: get_trainer_cls(mode))
    _require_class(trainer, SrpoTrainer, "trainer.v1.trainer_mode", mode, f"set it to {TRAINER_MODE}")
    for role, worker in _worker_classes(trainer, config).items():
        remedy = f"{trainer.__name__} has it as {role}; keep SrpoWorker"
        _require_class(worker, SrpoWorker, "trainer.v1.trainer_mode", mode, remedy)
    with _variables(environment):
        for model_type, wanted in ((STUDENT_TYPE, SrpoEngine), (TEACHER_TYPE, SrpoTeacherEngine)):
            key = "actor_rollout_ref.actor.strategy"
            engine = _picked(key, strategy, partial(EngineRegistry.get_engine_cls, model_type, strategy))
            _require_class(engine, wanted, key, strategy, f"unset {' and '.join(ENGINE_VARIABLES)}")
    _require_function(
        _picked("algorithm.adv_estimator", estimator, lambda: get_adv_estimator_fn(estimator)),
        group_relative_advantage,
        "algorithm.adv_estimator",
        estimator,
        f"set it to {ESTIMATOR}, and register nothing else under that name",
    )
    key = "actor_rollout_ref.actor.policy_loss.loss_mode"
    _require_function(
        _picked(key, loss_mode, lambda: get_policy_loss_fn(loss_mode)),
        grpo_branch_loss,
        key,
        loss_mode,
        f"set it to {POLICY_LOSS}, and register nothing else under that name",
    )


def _picked(key: str, value: object, pick: Callable[[], Any]) -> Any:
    """What veRL picks; its complaint, with the key, where it finds nothing."""
    try:
        return pick()
    except (ValueError, AssertionError) as error:
        raise ConfigError(key, value, f"veRL finds nothing to run: {error}") from error


def _worker_classes(trainer: type, config: DictConfig) -> dict[str, type]:
    """The classes of the roles that train or hold the actor, named by the trainer's own method."""
    shell: Any = object.__new__(trainer)
    shell.config = deepcopy(config)
    shell._init_resource_pool_mgr()
    roles = {Role.Actor, Role.ActorRollout, Role.ActorRolloutRef}
    # Ray hands out a class of its own around the one it was given.
    return {
        str(role): actor.__ray_metadata__.modified_class.__ray_actor_class__
        for role, actor in shell.role_worker_mapping.items()
        if role in roles
    }


@contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENGINE_VARIABLES}

    def put(values: Mapping[str, str | None]) -> None:
        for name in ENGINE_VARIABLES:
            value = values.get(name)
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(environment)
    try:
        yield
    finally:
        put(before)


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _require_class(found: type, wanted: type, key: str, value: object, remedy: str) -> None:
    if not issubclass(found, wanted):
        raise ConfigError(key, value, f"veRL would run {_name(found)} instead of {_name(wanted)}; {remedy}")


def _require_function(found: Any, wanted: Any, key: str, value: object, remedy: str) -> None:
    if found is not wanted:
        raise ConfigError(key, value, f"veRL would run {_name(found)} instead of {_name(wanted)}; {remedy}")

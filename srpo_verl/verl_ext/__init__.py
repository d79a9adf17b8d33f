"""Adapters between the algorithm and veRL 0.9.1: everything here imports veRL, and nothing outside imports it."""


def register() -> None:
    """Put estimator, policy loss, engines and trainer into veRL's registries; importing the modules does it."""
    from srpo_verl.verl_ext import estimator, trainer, worker  # noqa: F401


def missing_registrations() -> list[str]:
    """Names of what veRL's registries should hold from this plugin and do not."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine.base import EngineRegistry

    from srpo_verl.config.check import TRAINER_MODE

    wanted = {
        "advantage estimator srpo": "srpo" in ADV_ESTIMATOR_REGISTRY,
        "policy loss srpo": "srpo" in POLICY_LOSS_REGISTRY,
        f"trainer {TRAINER_MODE}": TRAINER_MODE in TRAINER_REGISTRY,
        "engine srpo_student": "srpo_student" in EngineRegistry._engines,
        "engine srpo_teacher": "srpo_teacher" in EngineRegistry._engines,
    }
    return [name for name, present in wanted.items() if not present]

"""Training with veRL on machines without an accelerator: platform, rollout engine, replay buffer, shims.

`register()` runs when veRL loads the plugin, that is in every process that imports verl. It does nothing where an
accelerator is present or another platform was chosen.
"""

import os

import torch

ROLLOUT_NAME = "hf"


def is_wanted() -> bool:
    """Whether this process should use the CPU platform: VERL_PLATFORM decides if set, else absence of accelerators."""
    chosen = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if chosen:
        return chosen == "cpu"
    has_npu = hasattr(torch, "npu") and torch.npu.is_available()
    return not torch.cuda.is_available() and not has_npu


def register() -> None:
    """Register the CPU platform and the rollout named "hf", and apply the shims; a second call changes nothing."""
    from verl.plugin.platform import PlatformRegistry, platform_manager, set_platform

    from srpo_verl.cpu.platform import PlatformCPU

    if PlatformRegistry.get("cpu") is None:
        PlatformRegistry.register(platform="cpu")(PlatformCPU)
    if not is_wanted():
        return
    if not isinstance(platform_manager._current_platform, PlatformCPU):
        set_platform(PlatformCPU())

    # EngineRegistry knows the FSDP engines by "cuda" and "npu". They are device-agnostic, and veRL has this variable
    # for choosing the entry; registering them for "cpu" would import every engine into every process.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")

    from srpo_verl.cpu import shims

    shims.apply()
    _register_rollout()


def _register_rollout() -> None:
    """Make `actor_rollout_ref.rollout.name=hf` known to trainer and workers, without importing the engine yet."""
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    def load_replica() -> type:
        from srpo_verl.cpu.rollout import HFReplica

        return HFReplica

    _ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = "srpo_verl.cpu.rollout.HFServerAdapter"
    RolloutReplicaRegistry.register(ROLLOUT_NAME, load_replica)

"""Training with veRL on machines without an accelerator: platform, rollout engine, replay buffer, shims.

Nothing here comes into being by detection: a run asks. `platform=cpu` on the command line is enough; it sets veRL's
own variable VERL_PLATFORM=cpu for every Ray process of the run and has this process call `activate()`. Who starts
processes without that configuration sets the variable before verl is imported, or calls `activate()` at any time.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from wrapt import register_post_import_hook

PLATFORM_VARIABLE = "VERL_PLATFORM"
ENGINE_VARIABLE = "VERL_ENGINE_DEVICE"
ROLLOUT_NAME = "hf"


def is_asked() -> bool:
    """Whether the environment asks for the CPU platform; veRL reads the variable in the same way."""
    return os.environ.get(PLATFORM_VARIABLE, "").strip().lower() == "cpu"


def activate() -> None:
    """Make the CPU veRL's platform in this process and in those it starts; a second call changes nothing.

    Works before and after veRL was imported. Raises RuntimeError where VERL_PLATFORM names another platform.
    """
    if os.environ.get(PLATFORM_VARIABLE, "").strip() and not is_asked():
        raise RuntimeError(
            f"platform=cpu contradicts {PLATFORM_VARIABLE}={os.environ[PLATFORM_VARIABLE]!r} in the environment; "
            "unset it, or leave platform=cpu out"
        )
    os.environ[PLATFORM_VARIABLE] = "cpu"
    # EngineRegistry knows the FSDP engines by "cuda" and "npu". They are device-agnostic, and veRL has this variable
    # for choosing the entry.
    os.environ.setdefault(ENGINE_VARIABLE, "cuda")

    # First: veRL then loads the plugin, which comes back here and finds its way to the end.
    import_module("verl")
    platform = import_module("srpo_verl.cpu.platform")
    if hasattr(platform, "install"):  # else it is being imported, and installs itself at its end
        platform.install()
    import_module("srpo_verl.cpu.shims").apply()
    register_post_import_hook(_add_server_adapter, "verl.workers.rollout.base")
    register_post_import_hook(_add_replica, "verl.workers.rollout.replica")
    register_post_import_hook(_add_attention, "transformers.modeling_utils")


def _add_attention(module: ModuleType) -> None:
    """Make `model.override_config.attn_implementation=packed_sdpa` known wherever a model is built."""
    import_module("srpo_verl.cpu.attention").register()


def _add_server_adapter(module: ModuleType) -> None:
    """Make `actor_rollout_ref.rollout.name=hf` known to workers; veRL imports the class by its name."""
    module._ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = "srpo_verl.cpu.rollout.HFServerAdapter"


def _add_replica(module: ModuleType) -> None:
    """Make `actor_rollout_ref.rollout.name=hf` known to the trainer, without importing the engine yet."""

    def load_replica() -> type:
        from srpo_verl.cpu.rollout import HFReplica

        return HFReplica

    module.RolloutReplicaRegistry.register(ROLLOUT_NAME, load_replica)

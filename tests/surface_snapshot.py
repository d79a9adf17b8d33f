"""Run as a program: imports verl and the modules named as arguments, and prints what this process then is, as JSON.

`--cuda` makes torch say that it sees a GPU before verl is imported.
"""

import hashlib
import importlib
import inspect
import json
import os
import sys

REGISTRIES = (
    "verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY",
    "verl.trainer.ppo.core_algos:POLICY_LOSS_REGISTRY",
    "verl.trainer.ppo.v1.trainer_base:TRAINER_REGISTRY",
    "verl.workers.engine.base:EngineRegistry._engines",
    "verl.workers.rollout.base:_ROLLOUT_REGISTRY",
    "verl.workers.rollout.replica:RolloutReplicaRegistry._registry",
)


def origin(value: object) -> str:
    """Tells functions and classes apart by where they come from: a patch has another module or name."""
    is_named = isinstance(value, type) or inspect.isroutine(value)
    names = [str(getattr(value, key, "")) for key in ("__module__", "__qualname__")] if is_named else []
    return f"{type(value).__qualname__} {names} {value if isinstance(value, bool) else ''}"


def digest(things: dict) -> dict[str, str]:
    """A hash of each attribute's origin."""
    # The last four are the variables with which veRL looks for plugins.
    changing = ("__builtins__", "__warningregistry__", "_entry_points", "_discovered", "_allowed", "_ep")
    return {
        str(key): hashlib.blake2b(origin(value).encode(), digest_size=8).hexdigest()
        for key, value in things.items()
        if key not in changing
    }


def keys(path: str) -> list[str] | None:
    """Keys of a registry; None where its module is not loaded."""
    module, _, attributes = path.partition(":")
    found = sys.modules.get(module)
    for name in attributes.split("."):
        found = getattr(found, name, None)
    return None if found is None else sorted(map(str, found))


def main(arguments: list[str]) -> None:
    import torch

    if "--cuda" in arguments:
        arguments.remove("--cuda")
        torch.cuda.is_available = lambda: True
    before = dict(os.environ)
    import verl

    loaded = sorted(sys.modules)
    for name in arguments:
        importlib.import_module(name)

    from verl.plugin.platform import PlatformRegistry, get_platform

    platform = get_platform()
    everything = dict(sys.modules.items())
    attributes = {
        name: digest(vars(module)) for name, module in everything.items() if name.split(".")[0] in ("torch", "verl")
    }
    attributes |= {f"class {cls.__name__}": digest(vars(cls)) for cls in (torch.Tensor, torch.nn.Module)}
    print(
        json.dumps(
            {
                "verl": verl.__version__,
                "loaded": loaded,
                "platform": [
                    type(platform).__name__,
                    platform.device_name,
                    platform.ray_noset_envvars(),
                    platform.rollout_env_vars(),
                    PlatformRegistry.registered_names(),
                ],
                "variables": {key: value for key, value in os.environ.items() if before.get(key) != value},
                "attributes": attributes,
                "registries": {path: keys(path) for path in REGISTRIES},
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])

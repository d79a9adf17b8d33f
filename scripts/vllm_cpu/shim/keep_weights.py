"""Plugin of vLLM: linear layers on the CPU keep the weights that an update by veRL writes to."""

import os
from collections.abc import Callable
from typing import Any

FAULT = "KEEP_WEIGHTS_FAULT"
"""Environment variable; "head": packs the head for the last time after the first update, a fault for the check."""


def keep_weights(pack: Callable[..., None]) -> Callable[..., None]:
    """`vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm` without its `remove_weight`.

    The function lets a layer compute with a packed copy of its weight, and for all layers but the head puts an empty
    tensor in the weight's place. It runs when the engine has loaded its (random) weights. veRL's update then writes
    into the layers' weights and runs it again, which needs weights of the right shape.
    """

    def pack_and_keep(layer: Any, remove_weight: bool) -> None:
        is_head = not remove_weight
        if is_head and os.environ.get(FAULT) == "head":
            layer.times_packed = getattr(layer, "times_packed", 0) + 1
            if layer.times_packed > 2:
                return
        pack(layer, remove_weight=False)

    return pack_and_keep


def register() -> None:
    """Replace the function where its callers import it from, at the time of each call."""
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = keep_weights(utils.dispatch_cpu_unquantized_gemm)

"""What FSDP holds of a module on this rank, and bringing it into that state."""

from __future__ import annotations

from collections.abc import Container, Iterator

import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from verl.utils.device import get_torch_device
from verl.utils.fsdp_utils import FSDPModule


@torch.no_grad()  # where gradients are on, FSDP1 may leave parameters on the gathered memory that it frees
def reshard(module: torch.nn.Module) -> None:
    """Give every FSDP unit its shards back, the root included.

    A module that only ever runs forward under no_grad keeps its root unit's gathered parameters: an average written
    into the shards would then never reach embeddings, final norm and LM head, and the next forward would use the old
    ones. veRL's evaluation mode re-shards only where fsdp_size > 1, and its default is -1.
    """
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()
        elif isinstance(unit, FSDP) and unit._handle is not None and unit._handle.uses_sharded_strategy:
            unit._handle.reshard(True)


def settle(module: torch.nn.Module) -> None:
    """Re-shard, and wait for copies: veRL offloads without blocking, and a host read would come too early."""
    reshard(module)
    get_torch_device().synchronize()


def shards(module: torch.nn.Module, names: Container[str] | None = None) -> Iterator[torch.Tensor]:
    """This rank's part of every parameter (or of those named), in the module's order.

    The module has to be sharded at the time.
    """
    for name, parameter in module.named_parameters():
        if names is None or name in names:
            yield parameter.to_local() if isinstance(parameter, DTensor) else parameter.data

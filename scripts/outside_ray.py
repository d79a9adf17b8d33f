"""The shipped worker outside Ray: its configuration, its ranks as processes, and the columns of a batch.

What the tests of the update, the benchmark of the training step and the checks on a GPU have in common.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.multiprocessing as mp


def compose_worker(name: str, overrides: Sequence[str]) -> Any:
    """What a user gets from `--config-name NAME` and the overrides, the worker's part as the trainer leaves it."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf, open_dict

    with initialize_config_module(config_module="srpo_verl.config", version_base=None):
        config = compose(name, list(overrides))
    with open_dict(config):
        config.actor_rollout_ref.srpo = OmegaConf.to_container(config.srpo)
    OmegaConf.resolve(config)
    return config


TokenRows = Sequence[torch.Tensor] | torch.Tensor


def columns_of_rows(prompts: TokenRows, responses: TokenRows, masks: TokenRows) -> dict[str, torch.Tensor]:
    """What veRL puts into every batch, from rows of prompts, responses and their masks."""
    from srpo_verl.verl_ext.nested import jagged

    every = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    return {
        "prompts": jagged(list(prompts)),
        "responses": jagged(list(responses)),
        "response_mask": jagged(list(masks)),
        "loss_mask": jagged(list(masks)),
        "input_ids": jagged(every),
        "position_ids": jagged([torch.arange(len(ids)) for ids in every]),
    }


def update_flags(num_rows: int) -> dict[str, Any]:
    """What veRL says beside a batch that is one optimizer step of so many rows over all ranks."""
    return {
        "calculate_entropy": False,
        "global_batch_size": num_rows,
        "mini_batch_size": num_rows,
        "epochs": 1,
        "seed": 0,
        "dataloader_kwargs": {"shuffle": False},
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_ranks(function: Callable[..., None], arguments: tuple, *, world_size: int, timeout: float, threads: int = 1):
    """`function(rank, *arguments)` in a process per rank, on the CPU platform, until all have ended.

    Raises:
        TimeoutError: a rank hangs. What a rank raises is raised, too; none of them is left behind.
    """
    given = (function, arguments, world_size, free_port(), threads)
    context = mp.spawn(_rank_main, given, nprocs=world_size, join=False, daemon=False)
    deadline = time.monotonic() + timeout
    try:
        while not context.join(timeout=5):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{world_size} ranks did not finish in {timeout} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _rank_main(
    rank: int, function: Callable[..., None], arguments: tuple, world_size: int, port: int, threads: int
) -> None:
    from srpo_verl import cpu

    os.environ.update(rank_environment(rank, world_size, port))
    torch.set_num_threads(threads)
    cpu.activate()
    faulthandler.enable()  # a rank that aborts says where
    function(rank, *arguments)
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is done and written: whatever a thread of gloo meets while the interpreter goes down is no failure of it. (A
    # second rank was once ended by SIGABRT, and nothing said where.)
    os._exit(0)

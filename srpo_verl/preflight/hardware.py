"""GPUs: those a run asks for, and those there are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from srpo_verl.preflight import cluster
from srpo_verl.preflight.findings import ERROR, NOTE, OK, Finding

SUBJECT = "GPUs"
CLUSTER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Pool:
    """GPUs that veRL reserves together: `per_node` on each of `nodes` machines."""

    key: str
    nodes: int
    per_node: int

    @property
    def total(self) -> int:
        return self.nodes * self.per_node


def pools(config: DictConfig) -> list[Pool]:
    """What veRL's trainer will ask Ray for."""
    found = [Pool("trainer", config.trainer.nnodes, config.trainer.n_gpus_per_node)]
    reward = config.reward.reward_model
    if reward.enable_resource_pool:
        found.append(Pool("reward.reward_model", reward.nnodes, reward.n_gpus_per_node))
    return found


def gpu_findings(config: DictConfig) -> list[Finding]:
    """Look at this machine, or at the Ray cluster that the run will join."""
    wanted = pools(config)
    if config.trainer.device == "cpu":
        return [Finding(OK, SUBJECT, "none wanted (trainer.device=cpu)")]
    address = cluster_address(config)
    if address is None:
        return compare(wanted, [local_gpus()], "this machine", cluster=False)
    try:
        nodes = ask_cluster(address)
    except ClusterError as error:
        return [Finding(NOTE, SUBJECT, f"the Ray cluster at {address} was not asked: {error}")]
    return compare(wanted, nodes, f"the Ray cluster at {address}", cluster=True)


def compare(wanted: Sequence[Pool], nodes: Sequence[int], where: str, *, cluster: bool) -> list[Finding]:
    """Do the machines, with `nodes` GPUs each, hold every pool? Ray would wait for ever for what they lack."""
    total = sum(nodes)
    gpus = f"{where} has {_gpus(total)}" + (f" on {len(nodes)} machines" if len(nodes) > 1 else "")
    asked = ", ".join(f"{pool.key}.nnodes={pool.nodes} and .n_gpus_per_node={pool.per_node}" for pool in wanted)
    if _fits(wanted, nodes):
        return [Finding(OK, SUBJECT, f"{gpus}, the run takes {sum(pool.total for pool in wanted)}")]
    if total == 0:
        elsewhere = "" if cluster else ", or join a Ray cluster (RAY_ADDRESS)"
        remedy = f"platform=cpu trains on the CPU; else check `nvidia-smi` and CUDA_VISIBLE_DEVICES{elsewhere}"
    else:
        remedy = f"set trainer.n_gpus_per_node={max(nodes)} (and trainer.nnodes) to what there is, or add machines"
    return [Finding(ERROR, SUBJECT, f"{gpus}, wanted are {asked}", remedy)]


def _gpus(number: int) -> str:
    return "no GPU" if number == 0 else f"{number} GPU{'s' if number > 1 else ''}"


def _fits(wanted: Sequence[Pool], nodes: Sequence[int]) -> bool:
    """Give every pool the machines with the most free GPUs."""
    free = list(nodes)
    for pool in sorted(wanted, key=lambda pool: pool.per_node, reverse=True):
        free.sort(reverse=True)
        if len(free) < pool.nodes or (pool.nodes and free[pool.nodes - 1] < pool.per_node):
            return False
        free = [gpus - pool.per_node if place < pool.nodes else gpus for place, gpus in enumerate(free)]
    return True


def local_gpus() -> int:
    """Accelerators that PyTorch sees here; counting them initialises none."""
    for name in ("cuda", "npu"):
        device = getattr(torch, name, None)
        if device is not None and device.is_available():
            return device.device_count()
    return 0


class ClusterError(RuntimeError):
    """A Ray cluster could not be asked."""


def cluster_address(config: DictConfig) -> str | None:
    """Where `ray.init` will connect to, or None where it will start a Ray of its own."""
    configured = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    address = os.environ.get("RAY_ADDRESS") or configured
    if address == "local":
        return None
    # `ray start` leaves this file on every machine of a cluster.
    started = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    if address in (None, "auto") and started.is_file():
        return started.read_text().strip() or address
    return address


def ask_cluster(address: str) -> list[int]:
    """GPUs of every machine of a running cluster, by a process of its own, so that this one stays outside of it.

    Raises ClusterError.
    """
    command = [sys.executable, "-m", cluster.__name__, address]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=CLUSTER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"no answer within {CLUSTER_TIMEOUT_S:.0f} s") from None
    if process.returncode != 0:
        reason = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise ClusterError(reason[-1])
    return cluster.read(process.stdout)

"""Batches of rollouts that the trainer's process has handed out and not yet waited for.

The agent-loop manager adds them and the replay buffer waits for them; veRL lets the two meet only through the tags in
TransferQueue, which have to be polled.
"""

from collections.abc import Iterable

import ray

_batches: list[ray.ObjectRef] = []


def add(batches: Iterable[ray.ObjectRef]) -> None:
    """Note what was handed out: each reference is ready when all rollouts of its batch are in TransferQueue."""
    _batches.extend(batches)


def wait() -> None:
    """Block until every batch is done. Raises what a worker raised, or that it died; nothing handed out: returns."""
    handed_out = list(_batches)
    _batches.clear()
    ray.get(handed_out)

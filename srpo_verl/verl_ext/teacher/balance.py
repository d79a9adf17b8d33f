"""Sharing the teacher's work out over the ranks: no rank waits for the one that holds most of the failures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from verl.utils.device import get_device_id


@dataclass(frozen=True)
class Sequence:
    """A distilled row as the teacher reads it."""

    row: int
    """Row of the batch of the rank that holds it."""
    input_ids: torch.Tensor
    """Teacher prompt and response, int64 (L,)."""
    response: int
    """T, the number of response tokens at the end."""
    support: torch.Tensor | None
    """int32 (T * K,); None: the full vocabulary."""


@dataclass(frozen=True)
class Scores:
    """What the teacher says about one sequence: float32 (T * K,) and (T,)."""

    log_probs: torch.Tensor
    entropy: torch.Tensor


@dataclass(frozen=True)
class Task:
    """One sequence, as all ranks know of it."""

    owner: int
    length: int
    response: int


@dataclass(frozen=True)
class Portion:
    """What this rank scores: its own sequences that stay, then those of others."""

    sequences: list[Sequence]
    tasks: list[Task]
    """Of all ranks, owner after owner, each owner's in the order it holds them."""
    scorers: list[int]
    """The rank that scores each task."""
    width: int
    """K."""
    group: dist.ProcessGroup

    def send_back(self, scores: list[Scores]) -> list[Scores]:
        """Scores of this rank's `sequences` in; those of the sequences it holds out, in order. A collective."""
        me = dist.get_rank(self.group)
        indices = _kept_then_received(self.tasks, self.scorers, me)
        scored = dict(zip(indices, scores, strict=True))
        outgoing, incoming, awaited = [], [], []
        for index, (task, scorer) in enumerate(zip(self.tasks, self.scorers, strict=True)):
            if task.owner != me and scorer == me:
                outgoing += [(task.owner, scored[index].log_probs), (task.owner, scored[index].entropy)]
            elif task.owner == me and scorer != me:
                shapes = task.response * self.width, task.response
                incoming += [(scorer, shape, torch.float32) for shape in shapes]
                awaited.append(index)
        tensors = iter(_exchange(outgoing, incoming, self.group))
        scored |= {index: Scores(next(tensors), next(tensors)) for index in awaited}
        return [scored[index] for index, task in enumerate(self.tasks) if task.owner == me]


def share(held: list[Sequence], group: dist.ProcessGroup) -> Portion:
    """Move sequences between ranks so that all have about as many teacher tokens. A collective.

    With the full vocabulary as support nothing moves: T * V log-probs would have to travel back.
    """
    me = dist.get_rank(group)
    tasks, width = _gather_tasks(held, group)
    owners = [task.owner for task in tasks]
    scorers = assign(tasks, dist.get_world_size(group)) if width else owners

    outgoing, incoming, awaited = [], [], []
    mine = dict(zip((index for index, owner in enumerate(owners) if owner == me), held, strict=True))
    for index, (task, scorer) in enumerate(zip(tasks, scorers, strict=True)):
        if task.owner == me and scorer != me:
            support = mine[index].support
            assert support is not None  # nothing moves without one
            outgoing += [(scorer, mine[index].input_ids), (scorer, support)]
        elif task.owner != me and scorer == me:
            incoming += [
                (task.owner, task.length, torch.int64),
                (task.owner, task.response * width, torch.int32),
            ]
            awaited.append(index)
    tensors = iter(_exchange(outgoing, incoming, group))
    mine |= {index: Sequence(-1, next(tensors), tasks[index].response, next(tensors)) for index in awaited}
    sequences = [mine[index] for index in _kept_then_received(tasks, scorers, me)]
    return Portion(sequences, tasks, scorers, width, group)


def assign(tasks: list[Task], num_ranks: int) -> list[int]:
    """The rank that scores each task: its owner, but for the moves that even out the numbers of tokens.

    From the fullest rank to the emptiest, always the task that leaves the lower maximum of the two, as long as that
    is lower than before. Deterministic, so that all ranks find the same assignment without talking.
    """
    scorers = [task.owner for task in tasks]
    load = [0] * num_ranks
    for task in tasks:
        load[task.owner] += task.length
    while True:
        full, empty = load.index(max(load)), load.index(min(load))
        moves = [
            (max(load[full] - task.length, load[empty] + task.length), index)
            for index, task in enumerate(tasks)
            if scorers[index] == full
        ]
        maximum, chosen = min(moves, default=(load[full], -1))
        if maximum >= load[full]:
            return scorers
        scorers[chosen] = empty
        load[full] -= tasks[chosen].length
        load[empty] += tasks[chosen].length


def _kept_then_received(tasks: list[Task], scorers: list[int], me: int) -> list[int]:
    """Indices of the tasks this rank scores."""
    indices = [index for index, scorer in enumerate(scorers) if scorer == me]
    return sorted(indices, key=lambda index: tasks[index].owner != me)


def _gather_tasks(held: list[Sequence], group: dist.ProcessGroup) -> tuple[list[Task], int]:
    """The tasks of all ranks in the same order everywhere, and K (0: full vocabulary, or no task). A collective."""
    device, size = get_device_id(), dist.get_world_size(group)
    widths = [len(s.support) // s.response for s in held if s.support is not None]
    header = torch.tensor([len(held), max(widths, default=0)], device=device)
    headers = [torch.zeros_like(header) for _ in range(size)]
    dist.all_gather(headers, header, group=group)
    counts, every_width = zip(*(entry.tolist() for entry in headers), strict=True)
    table = torch.zeros(max(counts), 2, dtype=torch.int64, device=device)
    if held:
        table[: len(held)] = torch.tensor([[len(s.input_ids), s.response] for s in held], device=device)
    tables = [torch.zeros_like(table) for _ in range(size)]
    dist.all_gather(tables, table, group=group)
    tasks = [
        Task(owner, length, response)
        for owner, count in enumerate(counts)
        for length, response in tables[owner][:count].tolist()
    ]
    return tasks, max(every_width)


def _exchange(
    outgoing: list[tuple[int, torch.Tensor]], incoming: list[tuple[int, int, torch.dtype]], group: dist.ProcessGroup
) -> list[torch.Tensor]:
    """Send tensors of one axis to ranks of the group; receive what others send here, as CPU tensors in order.

    Args:
        outgoing: (rank, tensor).
        incoming: (rank, length, dtype), in the order in which that rank sends.
    """
    device = get_device_id()
    received = [torch.empty(length, dtype=dtype, device=device) for _, length, dtype in incoming]
    operations = [
        dist.P2POp(dist.isend, tensor.to(device), dist.get_global_rank(group, rank), group=group)
        for rank, tensor in outgoing
    ]
    operations += [
        dist.P2POp(dist.irecv, tensor, dist.get_global_rank(group, rank), group=group)
        for (rank, _, _), tensor in zip(incoming, received, strict=True)
    ]
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    return [tensor.cpu() for tensor in received]

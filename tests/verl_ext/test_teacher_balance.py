"""Teacher sequences shared out over ranks: even, deterministic, and every row gets its own scores back."""

import random
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from srpo_verl.verl_ext.teacher.balance import Scores, Sequence, Task, assign, share

K = 3


def loads(tasks, scorers, num_ranks):
    return [
        sum(task.length for task, scorer in zip(tasks, scorers, strict=True) if scorer == r) for r in range(num_ranks)
    ]


@pytest.mark.parametrize("num_ranks", [1, 2, 5, 8])
@pytest.mark.parametrize("one_sided", [True, False])
def test_loads_differ_by_less_than_the_longest_sequence(num_ranks, one_sided):
    rng = random.Random(num_ranks)
    for _ in range(50):
        tasks = [
            Task(0 if one_sided else rng.randrange(num_ranks), rng.randint(2, 900), 1)
            for _ in range(rng.randint(1, 60))
        ]
        tasks.sort(key=lambda task: task.owner)
        result = loads(tasks, assign(tasks, num_ranks), num_ranks)
        # With a larger gap, moving the fullest rank's shortest sequence would have lowered the maximum.
        assert max(result) - min(result) <= max(task.length for task in tasks)
        assert sum(result) == sum(task.length for task in tasks)


def test_a_balanced_assignment_moves_nothing():
    tasks = [Task(rank, 100, 10) for rank in range(4) for _ in range(3)]
    assert assign(tasks, 4) == [task.owner for task in tasks]
    assert assign([], 4) == []


def sequences(rank, held):
    """Rows whose content tells rank and row apart."""
    return [
        Sequence(
            row,
            torch.arange(length) + 1000 * rank + 100 * row,
            response,
            None if width == 0 else torch.full((response * width,), 10 * rank + row, dtype=torch.int32),
        )
        for row, length, response, width in held
    ]


def rank_main(rank, world_size, port, held, queue):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    mine = sequences(rank, held[rank])
    work = share(mine, dist.group.WORLD)
    scores = []
    for sequence in work.sequences:
        values = sequence.input_ids[-sequence.response :].float()
        if sequence.support is not None:
            assert sequence.support.dtype == torch.int32
            assert sequence.support.unique().numel() == 1
            owner_and_row = int(sequence.input_ids[0]) // 1000 * 10 + int(sequence.input_ids[0]) % 1000 // 100
            assert int(sequence.support[0]) == owner_and_row  # ids and support of one and the same row
        scores.append(Scores(values.repeat_interleave(K), values))
    back = work.send_back(scores)
    for sequence, score in zip(mine, back, strict=True):
        expected = sequence.input_ids[-sequence.response :].float()
        assert torch.equal(score.entropy, expected)
        assert torch.equal(score.log_probs, expected.repeat_interleave(K))
    queue.put((rank, sum(len(sequence.input_ids) for sequence in work.sequences)))
    dist.barrier()
    dist.destroy_process_group()


def run(held, timeout=120):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    ranks = [context.Process(target=rank_main, args=(r, len(held), port, held, queue)) for r in range(len(held))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in ranks] == [0] * len(held)
    return [tokens for _, tokens in sorted(queue.get() for _ in ranks)]


def test_everything_on_one_rank_is_shared_and_comes_back():
    one_sided = [[(0, 40, 4, K), (2, 41, 1, K), (3, 39, 7, K), (5, 42, 2, K)], []]
    tokens = run(one_sided)
    assert sum(tokens) == 162
    assert max(tokens) - min(tokens) <= 4


def test_with_the_full_vocabulary_nothing_moves():
    assert run([[(0, 40, 4, 0), (1, 40, 4, 0)], []]) == [80, 0]

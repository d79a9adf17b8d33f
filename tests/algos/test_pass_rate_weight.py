"""Weights of prompts by their pass rate: by hand, over prompts rather than rows, over ranks."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from srpo_verl.functional import pass_rate_weights

#                       row: 0    1    2    3    4    5    6
RATES, GROUPS = torch.tensor([0.5, 0.5, 0.2, 0.2, 0.2, 0.9, 1.0]), torch.tensor([3, 3, 0, 0, 0, 1, 5])
DISTILLED = torch.tensor([True, False, True, True, False, False, True])


def expected():
    """Prompts 3, 0 and 5 distil; prompt 5 is always solved."""
    mean = (0.5 + 0.4 + 0.0) / 3
    return [0.5 / mean, 0, 0.4 / mean, 0.4 / mean, 0, 0, 0]


def test_by_hand():
    weights = pass_rate_weights(RATES, GROUPS, DISTILLED)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(expected())


def test_the_mean_over_the_prompts_that_distil_is_one():
    generator = torch.Generator().manual_seed(2)
    groups = torch.randint(0, 9, (60,), generator=generator)
    rates = (torch.arange(9) / 9 + 0.05)[groups]
    distilled = torch.rand(60, generator=generator) < 0.4
    weights = pass_rate_weights(rates, groups, distilled)
    of_prompt = {int(g): float(w) for g, w, d in zip(groups, weights, distilled, strict=True) if d}
    assert sum(of_prompt.values()) / len(of_prompt) == pytest.approx(1.0, abs=1e-6)
    assert max(of_prompt.values()) == pytest.approx(
        of_prompt[max(of_prompt, key=lambda g: math.sqrt((g / 9 + 0.05) * (0.95 - g / 9)))]
    )


@pytest.mark.parametrize("rates", [[], [0.0, 1.0]])
def test_nobody_distils_or_every_prompt_is_certain(rates):
    count = len(rates)
    weights = pass_rate_weights(torch.tensor(rates), torch.arange(count), torch.ones(count, dtype=torch.bool))
    assert weights.tolist() == [0.0] * count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_B": GROUPS[:3]}, "group_B must have shape"),
        ({"sdpo_B": DISTILLED[:3]}, "sdpo_B must have shape"),
        ({"sdpo_B": DISTILLED.float()}, "must be bool"),
        ({"pass_rate_B": RATES + 0.5}, "in .0, 1."),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        pass_rate_weights(**{"pass_rate_B": RATES, "group_B": GROUPS, "sdpo_B": DISTILLED, **change})


def _rank(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    # The rows of groups 3 and 0 lie on two ranks; the third rank has no distilled row at all.
    rows = [[0, 2, 4], [3, 1, 6], [5]][rank]
    results[rank] = pass_rate_weights(
        RATES[rows], GROUPS[rows], DISTILLED[rows], process_group=dist.group.WORLD
    ).tolist()
    dist.destroy_process_group()


def test_ranks_are_one_mini_batch(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (tmp_path / "store", results), nprocs=3)
        wanted = expected()
        for rank, rows in enumerate([[0, 2, 4], [3, 1, 6], [5]]):
            assert results[rank] == pytest.approx([wanted[row] for row in rows])

"""Equation (2), advantages: against veRL, against plain Python, and the edge cases of a group."""

import statistics

import numpy as np
import pytest
import torch

from srpo_verl.functional import group_advantages


def python_advantages(rewards, groups, normalize, eps):
    members = {g: [r for r, other in zip(rewards, groups, strict=True) if other == g] for g in groups}
    out = []
    for reward, group in zip(rewards, groups, strict=True):
        single = len(members[group]) == 1
        mean = 0.0 if single else statistics.fmean(members[group])
        std = 1.0 if single else statistics.stdev(members[group])
        out.append((reward - mean) / (std + eps) if normalize else reward - mean)
    return out


@pytest.mark.parametrize("normalize", [False, True])
def test_matches_python_statistics_in_float64(normalize):
    rng = np.random.default_rng(0)
    rewards, groups = rng.normal(size=37), rng.integers(0, 9, size=37)
    ours = group_advantages(torch.tensor(rewards), groups, normalize_by_std=normalize, eps=1e-3)
    expected = torch.tensor(python_advantages(rewards.tolist(), groups.tolist(), normalize, 1e-3), dtype=torch.float64)
    assert ours.dtype == torch.float64
    # Two float64 summation orders over at most 37 numbers of size 1.
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_matches_verl(normalize):
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(24, generator=generator)
    groups = np.array(["lone", *[f"p{i % 5}" for i in range(22)], "other-lone"], dtype=object)
    token_rewards = torch.zeros(24, 3)
    token_rewards[:, -1] = rewards
    verl_BT, _ = compute_grpo_outcome_advantage(
        token_rewards, torch.ones(24, 3), groups, norm_adv_by_std_in_grpo=normalize
    )
    ours = group_advantages(rewards, groups, normalize_by_std=normalize)
    # veRL sums in fp32, we in float64: a few units in the last place of numbers of size 1.
    torch.testing.assert_close(ours, verl_BT[:, 0], atol=1e-6, rtol=1e-6)
    assert ours[0] != 0  # a group of one keeps its raw reward


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.3])
def test_equal_rewards_give_exactly_zero(reward, normalize):
    for size in (2, 3, 7, 8):
        advantages = group_advantages(torch.full((size,), reward), ["g"] * size, normalize_by_std=normalize)
        assert advantages.tolist() == [0.0] * size


def test_group_of_one_keeps_its_reward():
    assert group_advantages(torch.tensor([0.7]), ["g"]).tolist() == torch.tensor([0.7]).tolist()


def test_groups_sum_to_zero_and_order_does_not_matter():
    generator = torch.Generator().manual_seed(2)
    rewards = torch.rand(40, generator=generator, dtype=torch.float64)
    groups = torch.arange(40) % 5
    advantages = group_advantages(rewards, groups)
    assert advantages.view(8, 5).sum(dim=0).abs().max() < 1e-12  # rounding of eight float64 additions
    order = torch.randperm(40, generator=generator)
    torch.testing.assert_close(group_advantages(rewards[order], groups[order]), advantages[order], atol=1e-14, rtol=0)


def test_paper_example():
    advantages = group_advantages(torch.tensor([0.0, 0, 1, 0, 0, 1, 0, 0]), ["x"] * 8)
    assert advantages.tolist() == [-0.25, -0.25, 0.75, -0.25, -0.25, 0.75, -0.25, -0.25]


def test_empty_batch_and_integer_rewards():
    assert group_advantages(torch.tensor([]), []).shape == (0,)
    assert group_advantages(torch.tensor([0, 1]), ["a", "a"]).tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("rewards", "groups", "options", "message"),
    [
        (torch.tensor([0.0, float("nan")]), ["a", "a"], {}, "nan at index 1"),
        (torch.zeros(2, 2), ["a", "a"], {}, r"\(2, 2\)"),
        (torch.zeros(2), ["a"], {}, "got 1"),
        (torch.zeros(2), ["a", "a"], {"eps": -1.0}, "got -1.0"),
    ],
)
def test_errors_name_the_value(rewards, groups, options, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, groups, **options)

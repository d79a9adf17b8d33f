"""Equation (2), policy loss: against veRL, against plain Python, and the truncated ratio of equation (3)."""

import math

import pytest
import torch

from srpo_verl.functional import importance_ratio, ppo_token_loss


def random_inputs(dtype=torch.float32, shape=(5, 13)):
    generator = torch.Generator().manual_seed(3)
    old = -3 * torch.rand(shape, generator=generator, dtype=dtype)
    log_probs = old + torch.randn(shape, generator=generator, dtype=dtype)
    log_probs[0, 0], log_probs[0, 1] = old[0, 0] + 30, old[0, 1] - 30  # beyond the clamp of the log-ratio
    advantages = torch.randn(shape, generator=generator, dtype=dtype)
    advantages[1] = 0.0
    return log_probs, old, advantages


def scalar_loss(log_prob, old, advantage, low, high, dual):
    ratio = math.exp(min(max(log_prob - old, -20.0), 20.0))
    surrogate = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        surrogate = max(surrogate, dual * advantage)
    return -surrogate


@pytest.mark.parametrize("dual", [None, 3.0, 1.5])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.28), (0.0, 0.0), (1.0, 5.0)])
def test_matches_scalar_arithmetic(low, high, dual):
    inputs = random_inputs(torch.float64)
    loss = ppo_token_loss(*inputs, clip_low=low, clip_high=high, dual_clip=dual)
    expected = [
        scalar_loss(*map(float, token), low, high, dual) for token in zip(*map(torch.ravel, inputs), strict=True)
    ]
    # Same formula in two float64 implementations of exp.
    torch.testing.assert_close(loss.ravel(), torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=1e-13)


def test_matches_verl_values_and_gradients():
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import FSDPActorConfig

    log_probs, old, advantages = random_inputs()
    generator = torch.Generator().manual_seed(4)
    mask = (torch.rand(log_probs.shape, generator=generator) < 0.7).float()
    config = FSDPActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=3.0,
    )
    ours_in, verl_in = log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_()
    verl_loss, _ = compute_policy_loss_vanilla(old, verl_in, advantages, mask, "token-mean", config)
    loss = (ppo_token_loss(ours_in, old, advantages) * mask).sum() / mask.sum()
    loss.backward()
    verl_loss.backward()
    # The same fp32 operations; veRL adds 1e-8 to nothing here, so only the order of the sum may differ.
    torch.testing.assert_close(loss, verl_loss, atol=0, rtol=1e-6)
    torch.testing.assert_close(ours_in.grad, verl_in.grad, atol=1e-9, rtol=1e-6)

    # Token by token: a mask of one token makes veRL's mean that token's loss.
    per_token = ppo_token_loss(log_probs, old, advantages)
    for index in [(0, 0), (0, 1), (1, 2), (2, 3), (4, 12)]:
        one = torch.zeros_like(mask)
        one[index] = 1.0
        verl_token, _ = compute_policy_loss_vanilla(old, log_probs, advantages, one, "token-mean", config)
        torch.testing.assert_close(per_token[index], verl_token, atol=0, rtol=1e-6)


def test_gradient_is_minus_ratio_times_advantage_inside_the_clip_and_zero_outside():
    old = torch.zeros(4, dtype=torch.float64)
    log_probs = torch.tensor([0.1, 0.5, -0.5, 2.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0], dtype=torch.float64)
    ppo_token_loss(log_probs, old, advantages).sum().backward()
    # Inside; clipped above; clipped below; e^2 = 7.4 is beyond the dual clip of 3.
    expected = torch.tensor([-2 * math.exp(0.1), 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(log_probs.grad, expected, atol=1e-15, rtol=1e-15)


def test_importance_ratio_truncates_and_is_detached():
    old = torch.zeros(3)
    log_probs = torch.tensor([-1.0, 0.5, 200.0], requires_grad=True)
    ratio = importance_ratio(log_probs, old, 2.0)
    assert not ratio.requires_grad
    torch.testing.assert_close(ratio, torch.tensor([math.exp(-1.0), math.exp(0.5), 2.0]))
    assert importance_ratio(log_probs, old, None).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": -0.1}, "got -0.1"),
        ({"clip_low": 1.5}, "got 1.5"),
        ({"clip_high": -1.0}, "got -1.0"),
        ({"dual_clip": 1.0}, "got 1.0"),
    ],
)
def test_errors_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        ppo_token_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), **options)


def test_no_silent_broadcasting():
    with pytest.raises(ValueError, match=r"advantages_BT \(2, 1\)"):
        ppo_token_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"old_log_probs_BT \(3,\)"):
        importance_ratio(torch.zeros(2, 3), torch.zeros(3), 2.0)
    with pytest.raises(ValueError, match=r"got 0\.0"):
        importance_ratio(torch.zeros(2), torch.zeros(2), 0.0)

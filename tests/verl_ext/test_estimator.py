"""The registered advantage estimator and policy loss against veRL's own, on everything they share."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import FSDPActorConfig

from tests.config import compose


@pytest.fixture(scope="module")
def config():
    return compose("srpo")


@pytest.fixture
def actor(config):
    """The actor's configuration as the worker gets it, with the counts veRL's ppo_loss writes into it."""

    def built(dp_size=1, num_tokens=None, **changes):
        node = OmegaConf.merge(config, {"actor_rollout_ref": {"actor": changes}}).actor_rollout_ref.actor
        result = omega_conf_to_dataclass(node)
        assert isinstance(result, FSDPActorConfig)
        result.global_batch_info.update(dp_size=dp_size, batch_num_tokens=num_tokens)
        return result

    return built


# --- advantages ------------------------------------------------------------------------------------------------------


def ragged(seed):
    """Groups of one to six, one of one among them, in any order; a reward on the last token, lengths 1 to 12."""
    generator = np.random.default_rng(seed)
    sizes = [1, *generator.integers(2, 7, 4)]
    index = np.array([f"uid-{group}" for group, size in enumerate(sizes) for _ in range(size)], object)
    generator.shuffle(index)
    lengths = generator.integers(1, 13, len(index))
    mask = torch.arange(12)[None, :] < torch.tensor(lengths)[:, None]
    rewards = torch.zeros(len(index), 12)
    rewards[torch.arange(len(index)), torch.tensor(lengths) - 1] = torch.tensor(
        generator.normal(size=len(index)), dtype=torch.float32
    )
    return rewards, mask.to(torch.int64), index


@pytest.mark.parametrize("as_dataclass", [True, False])
@pytest.mark.parametrize("by_std", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_advantages_are_those_of_grpo(config, seed, by_std, as_dataclass):
    rewards, mask, index = ragged(seed)
    algorithm = OmegaConf.merge(config, {"algorithm": {"norm_adv_by_std_in_grpo": by_std}}).algorithm
    if as_dataclass:
        algorithm = omega_conf_to_dataclass(algorithm)
    ours = core_algos.get_adv_estimator_fn("srpo")(
        token_level_rewards=rewards.clone(), response_mask=mask, index=index, config=algorithm
    )
    theirs = core_algos.compute_grpo_outcome_advantage(rewards.clone(), mask, index, norm_adv_by_std_in_grpo=by_std)
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.dtype == reference.dtype
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)
        assert not mine[mask == 0].any()


def test_the_two_normalisations_differ_and_the_shipped_one_is_without(config):
    rewards, mask, index = ragged(0)
    estimator = core_algos.get_adv_estimator_fn("srpo")
    shipped, _ = estimator(rewards, mask, index, config=config.algorithm)
    plain, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, index, norm_adv_by_std_in_grpo=False)
    divided, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, index, norm_adv_by_std_in_grpo=True)
    torch.testing.assert_close(shipped, plain, rtol=1e-5, atol=1e-6)
    assert (shipped - divided).abs().max() > 0.1
    torch.testing.assert_close(estimator(rewards, mask, index)[0], plain, rtol=1e-5, atol=1e-6)


def test_rewards_are_summed_over_tokens_and_not_changed():
    rewards, mask = torch.tensor([[0.25, 0.5, 0.25], [0.0, 0.5, 0.0]]), torch.ones(2, 3, dtype=torch.int64)
    before = rewards.clone()
    advantages, _ = core_algos.get_adv_estimator_fn("srpo")(rewards, mask, np.array(["q", "q"], object))
    assert advantages.tolist() == [[0.25] * 3, [-0.25] * 3]
    assert torch.equal(rewards, before)


# --- policy loss -----------------------------------------------------------------------------------------------------


def tokens(seed, rows=6, width=9, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    log_prob = -torch.rand(rows, width, generator=generator) * 3
    old = log_prob + spread * torch.randn(rows, width, generator=generator)
    advantages = torch.randn(rows, width, generator=generator)
    mask = (torch.arange(width)[None, :] < torch.randint(1, width + 1, (rows, 1), generator=generator)).long()
    weights = 2 * torch.rand(rows, width, generator=generator)
    return log_prob, old, advantages, mask, weights


def compared(actor_config, log_prob, old, advantages, mask, weights=None):
    """(loss, gradient, metrics) of the registered loss, after comparing all three with veRL's."""
    results = []
    for function in (core_algos.get_policy_loss_fn("srpo"), core_algos.compute_policy_loss_vanilla):
        leaf = log_prob.clone().requires_grad_()
        loss, metrics = function(
            old_log_prob=old,
            log_prob=leaf,
            advantages=advantages,
            response_mask=mask,
            loss_agg_mode="token-mean",
            config=actor_config,
            rollout_is_weights=weights,
        )
        (gradient,) = torch.autograd.grad(loss, leaf)
        results.append((loss.detach(), gradient, metrics))
    (loss, gradient, metrics), (their_loss, their_gradient, their_metrics) = results
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-7)
    assert metrics.keys() == their_metrics.keys()
    for name, value in their_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    return loss, gradient, metrics


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dp_size", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_loss_gradient_and_metrics_are_veRLs(actor, seed, dp_size, weighted):
    log_prob, old, advantages, mask, weights = tokens(seed)
    num_tokens = int(mask.sum()) * 3 + 1  # of all micro-batches and ranks
    loss, gradient, metrics = compared(
        actor(dp_size, num_tokens), log_prob, old, advantages, mask, weights if weighted else None
    )
    assert loss != 0
    assert not gradient[mask == 0].any()
    # Every kind of clipping happened, or equality would say little.
    assert metrics["actor/pg_clipfrac"] > 0


def test_the_count_of_the_batch_may_be_a_tensor(actor):
    log_prob, old, advantages, mask, _ = tokens(0)
    loss, *_ = compared(actor(2, torch.tensor(int(mask.sum()))), log_prob, old, advantages, mask)
    again, *_ = compared(actor(2, int(mask.sum())), log_prob, old, advantages, mask)
    assert loss == again


def test_the_dual_clip(actor):
    """A < 0 and a ratio above 3: the loss is 3|A|, and the token has no gradient."""
    old, log_prob = torch.zeros(1, 4), torch.tensor([[2.0, 0.5, 2.0, -2.0]])
    advantages, mask = torch.tensor([[-1.0, -1.0, 1.0, -1.0]]), torch.ones(1, 4, dtype=torch.int64)
    loss, gradient, metrics = compared(actor(1, 4), log_prob, old, advantages, mask)
    ratio = np.exp(0.5)
    assert loss.item() == pytest.approx((3.0 + ratio - 1.28 + 0.8) / 4)
    assert gradient[0].tolist() == pytest.approx([0.0, ratio / 4, 0.0, 0.0])
    assert metrics["actor/pg_clipfrac_lower"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("changes", [{"clip_ratio_c": 1.5}, {"clip_ratio_low": 0.05}, {"clip_ratio_high": 1.0}])
def test_every_bound_is_the_configured_one(actor, changes):
    log_prob, old, advantages, mask, _ = tokens(7)
    shipped, *_ = compared(actor(1, 10), log_prob, old, advantages, mask)
    changed, *_ = compared(actor(1, 10, **changes), log_prob, old, advantages, mask)
    assert abs(shipped - changed) > 1e-3


def test_bounds_left_out_fall_back_to_clip_ratio(actor):
    log_prob, old, advantages, mask, _ = tokens(8)
    changes = {"clip_ratio": 0.6, "clip_ratio_low": None, "clip_ratio_high": None}
    both, *_ = compared(actor(1, 10, **changes), log_prob, old, advantages, mask)
    same, *_ = compared(actor(1, 10, clip_ratio_low=0.6, clip_ratio_high=0.6), log_prob, old, advantages, mask)
    assert both == same


def test_extreme_ratios_are_bounded_as_in_veRL(actor):
    # Not as many up as down, or the means of bounded and unbounded log-ratios would both be 0.
    log_prob = torch.tensor([[0.0, -90.0, 0.0, 0.0]])
    old, advantages = torch.tensor([[-90.0, 0.0, -90.0, -90.0]]), torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    loss, gradient, _ = compared(actor(1, 4), log_prob, old, advantages, torch.ones(1, 4, dtype=torch.int64))
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dp_size", [1, 2])
def test_an_empty_mask_gives_a_zero_that_is_attached(actor, dp_size):
    """A rank, or a micro-batch, without GRPO rows still has to take part in the backward pass."""
    log_prob, old, advantages, mask, weights = tokens(9)
    loss, gradient, metrics = compared(actor(dp_size, 50), log_prob, old, advantages, mask * 0, weights)
    assert loss == 0
    assert gradient.shape == log_prob.shape
    assert not gradient.any()
    assert all(value == 0 for value in metrics.values())


def test_micro_batches_add_up_and_ranks_average_out(actor):
    """1 x 6 rows = 3 x 2 rows; and the mean over two ranks of their losses is the loss of one."""
    log_prob, old, advantages, mask, weights = tokens(10)
    count = int(mask.sum())
    whole, gradient, _ = compared(actor(1, count), log_prob, old, advantages, mask, weights)
    parts = [
        compared(actor(1, count), *(x[rows] for x in (log_prob, old, advantages, mask, weights)))
        for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(part[0] for part in parts), whole)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient)
    ranks = [
        compared(actor(2, count), *(x[rows] for x in (log_prob, old, advantages, mask, weights)))[0]
        for rows in (slice(0, 1), slice(1, 6))
    ]
    torch.testing.assert_close(sum(ranks) / 2, whole)


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "seq-mean-token-sum", "token-sum"])
def test_no_other_denominator(actor, mode):
    log_prob, old, advantages, mask, _ = tokens(11)
    with pytest.raises(ValueError, match=rf"loss_agg_mode='{mode}': has to be 'token-mean'"):
        core_algos.get_policy_loss_fn("srpo")(old, log_prob, advantages, mask, loss_agg_mode=mode, config=actor(1, 10))

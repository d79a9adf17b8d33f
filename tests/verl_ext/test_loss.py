"""The actor's loss on one micro-batch, without an engine: equation (5) from its parts, and against veRL's own."""

from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import AggregationType
from verl.workers.utils.losses import ppo_loss

from srpo_verl.config.schema import parse
from srpo_verl.verl_ext import fields
from srpo_verl.verl_ext.loss import SrpoLoss
from srpo_verl.verl_ext.nested import jagged
from tests.config import compose

PROMPTS, RESPONSES = [3, 2, 4, 1], [5, 1, 3, 4]
GRPO = torch.tensor([1.0, 0.0, 1.0, 0.0])  # of the paper's partition
ACTOR = "actor_rollout_ref.actor"


@pytest.fixture(scope="module")
def config():
    return compose("srpo", "platform=cpu", f"+{ACTOR}.global_batch_info={{}}")


def micro_batch(grpo_B, sdpo_B, *, num_tokens=40, dp_size=2, reference=False):
    generator = torch.Generator().manual_seed(3)

    def per_token(scale=1.0, offset=0.0):
        return jagged([offset + scale * torch.randn(length, generator=generator) for length in RESPONSES])

    masks = [torch.ones(length, dtype=torch.int64) for length in RESPONSES]
    masks[0][2] = 0
    inputs = [torch.arange(p + r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    columns = {
        "prompts": jagged([torch.arange(length) for length in PROMPTS]),
        "responses": jagged([torch.arange(length) for length in RESPONSES]),
        "input_ids": jagged(inputs),
        "response_mask": jagged(masks),
        "loss_mask": jagged(masks),
        "old_log_probs": per_token(0.4, -2.0),
        "advantages": per_token(),
        "rollout_is_weights": per_token(0.1, 1.0),
        fields.WEIGHTS: per_token(0.1, 1.0),
        fields.GRPO_SHARE: grpo_B,
        fields.SDPO_SHARE: sdpo_B,
        fields.SDPO_ROW: sdpo_B > 0,
    }
    if reference:
        columns["ref_log_prob"] = per_token(0.4, -2.0)
    # Of two ranks with as many tokens as this one.
    counted = dp_size * sum(int(mask.sum()) for mask, g in zip(masks, grpo_B, strict=True) if g > 0)
    flags = {"dp_size": dp_size, "batch_num_tokens": num_tokens, "global_batch_size": 8, fields.NUM_SDPO_TOKENS: 9}
    flags[fields.NUM_GRPO_TOKENS] = counted
    return tu.get_tensordict(columns, non_tensor_dict=flags)


def model_output(*, divergence=True, entropy=False):
    generator = torch.Generator().manual_seed(7)
    whole = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    output = {"log_probs": jagged([-2.0 + 0.4 * torch.randn(length, generator=generator) for length in whole])}
    output["log_probs"].requires_grad_()
    if divergence:
        output[fields.DIVERGENCE] = torch.rand(len(whole), max(RESPONSES), generator=generator).requires_grad_()
    if entropy:
        output["entropy"] = jagged([torch.rand(length, generator=generator) for length in whole])
    return output


def loss_of(config, **actor):
    from omegaconf import OmegaConf

    node = OmegaConf.merge(config, {"actor_rollout_ref": {"actor": actor}}).actor_rollout_ref.actor
    return SrpoLoss(omega_conf_to_dataclass(node), parse(config.srpo))


def by_verl(loss, output, batch):
    """veRL's own loss function, with the registered policy loss, on a batch whose mask holds the GRPO rows alone."""
    masked = batch.clone(recurse=False)
    rows = [
        mask * int(g > 0) for mask, g in zip(batch["response_mask"].unbind(), batch[fields.GRPO_SHARE], strict=True)
    ]
    masked["response_mask"] = jagged(rows)
    return ppo_loss(deepcopy(loss.actor_config), output, masked)


def gradients(value, output):
    wanted = [tensor for tensor in output.values() if tensor.requires_grad]
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    return [g.values() if g is not None and g.is_nested else g for g in found]


@pytest.mark.parametrize("grpo_B", [torch.ones(4), GRPO], ids=["every row", "some rows"])
def test_the_grpo_summand_is_veRLs_own_to_the_last_bit(config, grpo_B):
    batch, output = micro_batch(grpo_B, 1 - grpo_B), model_output(divergence=False)
    loss = loss_of(config)
    ours, metrics = loss(output, batch)
    theirs, their_metrics = by_verl(loss, output, batch)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradients(ours, output)[0], gradients(theirs, output)[0])
    assert metrics["actor/pg_loss"].values == their_metrics["actor/pg_loss"].values
    for name, metric in their_metrics.items():
        # Here the micro-batch is this rank's whole mini-batch, so that sums over sums are veRL's means.
        assert metrics[name].values == pytest.approx(metric.values, rel=1e-6), name
        assert metrics[name].aggregation == AggregationType.SUM, name


def test_kl_and_entropy_are_veRLs_on_the_grpo_rows(config):
    """The same terms, summed in another order: fp32 rounding."""
    loss = loss_of(config, use_kl_loss=True, kl_loss_coef=0.25, entropy_coeff=0.125)
    batch, output = micro_batch(GRPO, 1 - GRPO, reference=True), model_output(divergence=False, entropy=True)
    ours, metrics = loss(output, batch)
    theirs, their_metrics = by_verl(loss, output, batch)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, output)[0], gradients(theirs, output)[0])
    assert set(their_metrics) <= set(metrics)
    assert metrics["kl_coef"] == their_metrics["kl_coef"] == 0.25
    for name in ("kl_loss", "actor/entropy_loss"):
        torch.testing.assert_close(metrics[name].values, their_metrics[name].values)
    plain, _ = loss_of(config)(output, batch)
    assert abs(float(ours) - float(plain)) > 1e-3


@pytest.mark.parametrize("terms", [{}, {"use_kl_loss": True, "kl_loss_coef": 0.25, "entropy_coeff": 0.125}])
def test_every_row_counts_by_its_shares(config, terms):
    """sum_i g_i (row i's GRPO loss alone) + sum_i d_i (row i's distillation alone)."""
    g, d = torch.tensor([1.0, 0.25, 0.5, 0.0]), torch.tensor([0.0, 0.75, 2.0, 1.0])
    loss, output = loss_of(config, **terms), model_output(entropy=bool(terms))
    whole, metrics = loss(output, micro_batch(g, d, reference=bool(terms)))
    single = torch.eye(4)
    alone = [
        float(g[row]) * loss(output, micro_batch(single[row], 0 * d, reference=bool(terms)))[0]
        + float(d[row]) * loss(output, micro_batch(0 * g, single[row], reference=bool(terms)))[0]
        for row in range(4)
    ]
    torch.testing.assert_close(whole, sum(alone))
    for mine, reference in zip(gradients(whole, output), gradients(sum(alone), output), strict=True):
        torch.testing.assert_close(mine, reference)
    summands = [float(metrics[f"srpo/{name}"].values[0]) for name in ("grpo_loss", "sdpo_loss", "loss")]
    assert summands[0] + summands[1] == pytest.approx(summands[2])
    assert abs(summands[0]) > 1e-3
    assert abs(summands[1]) > 1e-3


def test_lambda_before_both_sums_is_the_same_to_the_last_bit(config):
    """How Advantage Mix is written in the paper, and was computed before there were shares."""
    d = torch.tensor([0.0, 1.0, 1.0, 0.0])
    output, loss = model_output(), loss_of(config)
    mixed, _ = loss(output, micro_batch(torch.full((4,), 0.7), 0.3 * d, dp_size=1))
    grpo, _ = loss(output, micro_batch(torch.ones(4), 0 * d, dp_size=1))
    sdpo, _ = loss(output, micro_batch(torch.zeros(4), d, dp_size=1))
    assert torch.equal(mixed, grpo * 0.7 + sdpo * (1 - 0.7))
    for mine, reference in zip(
        gradients(mixed, output), gradients(grpo * 0.7 + sdpo * (1 - 0.7), output), strict=True
    ):
        assert torch.equal(mine, reference)


def test_the_mean_divergence_is_over_omega_and_not_weighted(config):
    d = torch.tensor([0.5, 0.0, 0.0, 1.0])
    batch, output = micro_batch(1 - d, d), model_output()
    _, metrics = loss_of(config)(output, batch)
    mask = batch["response_mask"].to_padded_tensor(0).bool()
    expected = output[fields.DIVERGENCE][mask & (d > 0)[:, None]].sum() / 9 * 2
    assert float(metrics["srpo/student_teacher_divergence"].values[0]) == pytest.approx(float(expected))
    assert isinstance(batch, TensorDict)


def test_scores_without_a_divergence_are_an_error(config):
    """Without it the loss would be the GRPO summand alone, and nobody would notice."""
    batch = micro_batch(GRPO, 1 - GRPO)
    batch[fields.TEACHER_LOG_PROBS] = batch["old_log_probs"]
    loss_of(config)(model_output(), batch)
    with pytest.raises(RuntimeError, match="no divergence"):
        loss_of(config)(model_output(divergence=False), batch)

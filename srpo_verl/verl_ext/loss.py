"""Equation (5): the actor's loss, and its GRPO summand alone as the policy loss named `srpo` in veRL's registry."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import kl_penalty, register_policy_loss
from verl.utils import tensordict_utils as tu
from verl.utils import torch_functional as verl_F
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.padding import no_padding_2_padding

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.functional import importance_ratio, objective_summands, ppo_token_loss, srpo_objective
from srpo_verl.installation import POLICY_LOSS
from srpo_verl.verl_ext.fields import (
    DIVERGENCE,
    GRPO_SHARE,
    NUM_GRPO_TOKENS,
    NUM_SDPO_TOKENS,
    PROMPT_WEIGHTS,
    SDPO_SHARE,
    SKIP,
    TEACHER_LOG_PROBS,
    WEIGHTS,
)
from srpo_verl.verl_ext.token_recorder import TokenRecorder


class SrpoLoss:
    """Loss function of the actor, called by the engine once per micro-batch.

        L = [ sum_i g_i sum_t l^GRPO + sum_i d_i sum_t w * l^SDPO ] / n

    where n is the optimizer mini-batch's number of valid response tokens over all ranks, w the weights of eq. 4, and
    g and d the shares the trainer gave the row; where configured, d is times the weight of its prompt. Multiplied by
    the number of ranks, whose average FSDP takes. A KL term or an entropy bonus, where configured, is part of l^GRPO.
    The metrics of veRL's own `ppo_loss` go by its names.

    A token that rollout correction rejects has weight 0: it stays in n and in Omega and adds nothing to the sums.

    Of a training step that is to be skipped (SKIP) the loss is NaN: so is the norm of the gradient, on every rank, and
    veRL's engines leave out the optimizer's step.
    """

    def __init__(self, actor_config: ActorConfig, srpo: SrpoConfig):
        self.actor_config = actor_config
        self.srpo = srpo
        self.recorder = TokenRecorder()

    def __call__(
        self, model_output: dict[str, torch.Tensor], data: TensorDict, dp_group: Any = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        optional = [name for name in ("rollout_is_weights", "ref_log_prob", WEIGHTS) if name in data]
        dense = data.select("response_mask", "loss_mask", "old_log_probs", "advantages", *optional).to_padded_tensor()
        log_probs_BT = no_padding_2_padding(model_output["log_probs"], data)
        mask_BT, grpo_B, sdpo_B = dense["response_mask"].bool(), data[GRPO_SHARE], data[SDPO_SHARE]
        if PROMPT_WEIGHTS in data:
            sdpo_B = sdpo_B * data[PROMPT_WEIGHTS]

        terms, metrics = self._grpo_terms(model_output, data, dense, log_probs_BT, mask_BT & (grpo_B > 0)[:, None])
        sdpo_loss_BT = weights_BT = torch.zeros_like(log_probs_BT)
        if DIVERGENCE in model_output:
            sdpo_loss_BT, weights_BT = self._sdpo_loss(model_output, dense, log_probs_BT), dense[WEIGHTS]
            omega_BT = dense["loss_mask"].bool() & (sdpo_B > 0)[:, None]
            metrics |= self._divergence_metric(model_output, data, omega_BT)
        elif TEACHER_LOG_PROBS in data:
            raise RuntimeError("the teacher has scored this micro-batch, and the engine returned no divergence to it")

        self.recorder.add(data, dense, log_probs_BT, model_output)

        def summands(grpo_loss_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            grpo_loss, sdpo_loss = objective_summands(
                grpo_loss_BT,
                sdpo_loss_BT,
                weights_BT,
                mask_BT,
                sdpo_B,
                grpo_B=grpo_B,
                num_tokens=data["batch_num_tokens"],
            )
            return grpo_loss * data["dp_size"], sdpo_loss * data["dp_size"]

        grpo_loss_BT = torch.zeros_like(log_probs_BT)
        for factor, term_BT in terms.values():
            # The entropy is computed without a bonus, too, and then only logged.
            grpo_loss_BT = grpo_loss_BT + factor * term_BT if factor else grpo_loss_BT
        grpo_loss, sdpo_loss = summands(grpo_loss_BT)
        with torch.no_grad():
            metrics |= {name: _sum_metric(summands(term_BT)[0]) for name, (_, term_BT) in terms.items()}
        loss = grpo_loss + sdpo_loss
        if tu.get_non_tensor_data(data, SKIP, default=False):
            loss = loss * torch.nan
        metrics["srpo/grpo_loss"] = _sum_metric(grpo_loss)
        metrics["srpo/sdpo_loss"] = _sum_metric(sdpo_loss)
        metrics["srpo/loss"] = _sum_metric(loss)
        return loss, metrics

    def _grpo_terms(
        self,
        model_output: dict[str, torch.Tensor],
        data: TensorDict,
        dense: TensorDict,
        log_probs_BT: torch.Tensor,
        grpo_mask_BT: torch.Tensor,
    ) -> tuple[dict[str, tuple[float, torch.Tensor]], dict[str, Any]]:
        """What l^GRPO is the sum of, by the metric's name: (factor, value of every token); and the other metrics."""
        config = self.actor_config
        policy_loss_BT, sums = grpo_token_losses(
            dense["old_log_probs"],
            log_probs_BT,
            dense["advantages"],
            grpo_mask_BT,
            config=config,
            rollout_is_weights=dense.get("rollout_is_weights", None),
        )
        terms = {"actor/pg_loss": (1.0, policy_loss_BT)}
        count = tu.get_non_tensor_data(data, NUM_GRPO_TOKENS, default=0)
        metrics: dict[str, Any] = {
            name: _sum_metric(value / count * data["dp_size"]) for name, value in sums.items() if count
        }
        if model_output.get("entropy") is not None:
            terms["actor/entropy_loss"] = (-config.entropy_coeff, no_padding_2_padding(model_output["entropy"], data))
        if config.use_kl_loss:
            kl_BT = kl_penalty(logprob=log_probs_BT, ref_logprob=dense["ref_log_prob"], kl_penalty=config.kl_loss_type)
            terms["kl_loss"] = (config.kl_loss_coef, kl_BT)
            metrics["kl_coef"] = config.kl_loss_coef
        return terms, metrics

    def _sdpo_loss(
        self, model_output: dict[str, torch.Tensor], dense: TensorDict, log_probs_BT: torch.Tensor
    ) -> torch.Tensor:
        """l^SDPO of every token, equation (3)."""
        ratio_BT = importance_ratio(log_probs_BT, dense["old_log_probs"], clip=self.srpo.distillation.is_clip)
        loss_BT = model_output[DIVERGENCE] * ratio_BT
        return loss_BT * dense["rollout_is_weights"] if "rollout_is_weights" in dense else loss_BT

    def _divergence_metric(
        self, model_output: dict[str, torch.Tensor], data: TensorDict, omega_BT: torch.Tensor
    ) -> dict[str, Metric]:
        """This micro-batch's share of the mean divergence over Omega; nothing where Omega is empty."""
        count = tu.get_non_tensor_data(data, NUM_SDPO_TOKENS, default=0)
        if count == 0:
            return {}
        divergence = model_output[DIVERGENCE].detach().where(omega_BT, 0.0).sum() / count * data["dp_size"]
        return {"srpo/student_teacher_divergence": _sum_metric(divergence)}


def _sum_metric(value: torch.Tensor) -> Metric:
    """A share of a mean over the mini-batch: shares of micro-batches add up, ranks are averaged."""
    return Metric(value=value.detach(), aggregation=AggregationType.SUM)


@register_policy_loss(POLICY_LOSS)
def grpo_branch_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The GRPO summand of equation (5): clipped token losses over the mini-batch's number of valid tokens.

    `response_mask` holds the tokens of the GRPO rows only; the denominator, `batch_num_tokens` of all ranks, is the
    mini-batch's whole. The factor dp_size undoes the averaging of gradients over ranks. Shapes (B, T).
    """
    if loss_agg_mode != "token-mean":
        raise ValueError(f"actor_rollout_ref.actor.loss_agg_mode={loss_agg_mode!r}: has to be 'token-mean' (eq. 5)")
    loss_BT, sums = grpo_token_losses(
        old_log_prob, log_prob, advantages, response_mask, config=config, rollout_is_weights=rollout_is_weights
    )
    info = config.global_batch_info
    nobody_B = torch.zeros(loss_BT.shape[0], dtype=torch.bool, device=loss_BT.device)
    zeros_BT = torch.zeros_like(loss_BT)
    loss = srpo_objective(
        loss_BT, zeros_BT, zeros_BT, response_mask.bool(), nobody_B, num_tokens=info["batch_num_tokens"]
    )
    # Of this micro-batch, as in veRL; SrpoLoss divides by the mini-batch's count instead.
    num_local = response_mask.sum() + 1e-8
    return loss * info["dp_size"], {name: (value / num_local).item() for name, value in sums.items()}


def grpo_token_losses(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    config: Any,
    rollout_is_weights: torch.Tensor | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """l^GRPO of every token, equation (2) times the rollout-correction weight, and what is reported of its clipping.

    Shapes (B, T). What is reported are sums over `response_mask`, the tokens of the GRPO rows, by the metric's name;
    the losses are not masked. `config` is the actor's.
    """
    clip_low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    clip_high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    loss_BT = ppo_token_loss(
        log_prob, old_log_prob, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=config.clip_ratio_c
    )
    if rollout_is_weights is not None:
        loss_BT = loss_BT * rollout_is_weights
    with torch.no_grad():
        sums = _clip_sums(old_log_prob, log_prob, advantages, response_mask, clip_low, clip_high, config)
    return loss_BT, sums


def _clip_sums(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    clip_low: float,
    clip_high: float,
    config: Any,
) -> dict[str, torch.Tensor]:
    """What veRL's own policy loss reports the means of: clipped tokens and the approximate KL, summed."""
    log_ratio = (log_prob - old_log_prob).clamp(-20.0, 20.0)
    ratio = log_ratio.exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    lower = torch.maximum(unclipped, clipped) > -advantages * config.clip_ratio_c
    return {
        "actor/pg_clipfrac": verl_F.masked_sum((clipped > unclipped).float(), response_mask),
        "actor/ppo_kl": verl_F.masked_sum(-log_ratio, response_mask),
        "actor/pg_clipfrac_lower": verl_F.masked_sum((lower & (advantages < 0)).float(), response_mask),
    }

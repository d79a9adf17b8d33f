"""The actor's loss, equation (5): the clipped policy loss and the weighted divergence, each with its row's share."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import kl_penalty
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.padding import no_padding_2_padding

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.functional import importance_ratio, objective_summands
from srpo_verl.verl_ext.estimator import grpo_token_losses
from srpo_verl.verl_ext.fields import (
    DIVERGENCE,
    GRPO_SHARE,
    NUM_GRPO_TOKENS,
    NUM_SDPO_TOKENS,
    PROMPT_WEIGHTS,
    SDPO_SHARE,
    TEACHER_LOG_PROBS,
    WEIGHTS,
)


class SrpoLoss:
    """Loss function of the actor, called by the engine once per micro-batch.

        L = [ sum_i g_i sum_t l^GRPO + sum_i d_i sum_t w * l^SDPO ] / n

    where n is the optimizer mini-batch's number of valid response tokens over all ranks, w the weights of eq. 4, and
    g and d the shares the trainer gave the row; where configured, d is times the weight of its prompt. Multiplied by
    the number of ranks, whose average FSDP takes. A KL term or an entropy bonus, where configured, is part of l^GRPO.
    The metrics of veRL's own `ppo_loss` go by its names.

    A token that rollout correction rejects has weight 0: it stays in n and in Omega and adds nothing to the sums.
    """

    def __init__(self, actor_config: ActorConfig, srpo: SrpoConfig):
        self.actor_config = actor_config
        self.srpo = srpo

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

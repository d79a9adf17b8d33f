"""The actor's loss: veRL's policy loss on the GRPO rows and the weighted divergence on the SDPO rows (eq. 5)."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.functional import importance_ratio, srpo_objective
from srpo_verl.verl_ext.nested import like, rows_to_tokens
from srpo_verl.verl_ext.schema import DIVERGENCE, GRPO_ROW, NUM_SDPO_TOKENS, SDPO_ROW, WEIGHTS


class SrpoLoss:
    """Loss function of the actor, called by the engine once per micro-batch.

    loss = a * sum over GRPO rows of l^GRPO / n + b * sum over SDPO rows of w * l^SDPO / n

    where n is the optimizer mini-batch's number of valid response tokens over all ranks, w the weights of eq. 4,
    and a = b = 1, but lambda and 1 - lambda with routing=advantage_mix. Multiplied by the number of ranks, whose
    average FSDP takes.

    The first summand is veRL's own `ppo_loss` on a batch whose response mask holds the GRPO rows alone; a KL term or
    an entropy bonus, where configured, therefore belongs to that branch.
    """

    def __init__(self, actor_config: ActorConfig, srpo: SrpoConfig):
        self.actor_config = actor_config
        self.srpo = srpo
        mixed = srpo.routing == "advantage_mix"
        self.grpo_scale = srpo.mix_lambda if mixed else 1.0
        self.sdpo_scale = 1.0 - srpo.mix_lambda if mixed else 1.0

    def __call__(
        self, model_output: dict[str, torch.Tensor], data: TensorDict, dp_group: Any = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        grpo_loss, metrics = ppo_loss(self.actor_config, model_output, _only_grpo_rows(data), dp_group)
        loss = grpo_loss = grpo_loss * self.grpo_scale
        sdpo_loss = torch.zeros_like(grpo_loss)
        if DIVERGENCE in model_output:
            sdpo_loss, divergence = self._sdpo_loss(model_output, data)
            sdpo_loss = sdpo_loss * self.sdpo_scale
            loss = grpo_loss + sdpo_loss
            if divergence is not None:
                metrics["srpo/student_teacher_divergence"] = _sum_metric(divergence)
        metrics["srpo/grpo_loss"] = _sum_metric(grpo_loss)
        metrics["srpo/sdpo_loss"] = _sum_metric(sdpo_loss)
        metrics["srpo/loss"] = _sum_metric(loss)
        return loss, metrics

    def _sdpo_loss(
        self, model_output: dict[str, torch.Tensor], data: TensorDict
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The SDPO summand, and this micro-batch's share of the mean divergence over Omega (None: it is empty)."""
        names = ["response_mask", "old_log_probs", WEIGHTS]
        if "rollout_is_weights" in data:
            names.append("rollout_is_weights")
        dense = data.select(*names).to_padded_tensor()
        mask_BT, sdpo_B = dense["response_mask"].bool(), data[SDPO_ROW]
        divergence_BT = model_output[DIVERGENCE]

        log_probs_BT = no_padding_2_padding(model_output["log_probs"], data)
        loss_BT = divergence_BT * importance_ratio(
            log_probs_BT, dense["old_log_probs"], clip=self.srpo.distillation.is_clip
        )
        if "rollout_is_weights" in dense:
            loss_BT = loss_BT * dense["rollout_is_weights"]
        loss = srpo_objective(
            torch.zeros_like(loss_BT), loss_BT, dense[WEIGHTS], mask_BT, sdpo_B, num_tokens=data["batch_num_tokens"]
        )

        count = tu.get_non_tensor_data(data, NUM_SDPO_TOKENS, default=0)
        if count == 0:
            return loss * data["dp_size"], None
        divergence = divergence_BT.detach().where(mask_BT & sdpo_B[:, None], 0.0).sum()
        return loss * data["dp_size"], divergence / count * data["dp_size"]


def _only_grpo_rows(data: TensorDict) -> TensorDict:
    """The same batch with a response mask that is empty outside the GRPO rows."""
    selected = data.clone(recurse=False)
    mask = data["response_mask"]
    selected["response_mask"] = like(mask.values() * rows_to_tokens(data[GRPO_ROW], mask), mask)
    return selected


def _sum_metric(value: torch.Tensor) -> Metric:
    """A share of a mean over the mini-batch: shares of micro-batches add up, ranks are averaged."""
    return Metric(value=value.detach(), aggregation=AggregationType.SUM)

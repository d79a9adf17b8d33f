"""Advantages of tokens by the teacher (srpo.credit=teacher_ratio), in the worker, before the update."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.utils.device import get_device_id

from srpo_verl.functional import teacher_ratio_advantages
from srpo_verl.verl_ext.fields import CREDIT_SHARE, SUPPORT, TEACHER_ENTROPY, TEACHER_LOG_PROBS
from srpo_verl.verl_ext.nested import filler, jagged


def give_credit(
    data: TensorDict, score: Callable[[TensorDict], int], *, epsilon: float, group: dist.ProcessGroup
) -> tuple[int, dict[str, float]]:
    """Multiply the advantages of the CREDIT_SHARE rows by the clipped ratio of teacher and old policy, token by token.

    The teacher scores the sampled tokens alone: a support of one. What it returned leaves the batch again, so that the
    update is GRPO's. Every rank has to call it.

    Args:
        data: this rank's rows of the training step, on the CPU.
        score: the teacher pass over the CREDIT_SHARE rows; adds the teacher's fields, returns its tokens.
        epsilon: of `teacher_ratio_advantages`.
        group: the data-parallel ranks, over which the metrics are taken.

    Returns:
        The tokens that the teacher computed here, and the metrics over all ranks' valid tokens of these rows.
    """
    shares = data[CREDIT_SHARE].tolist()
    responses = data["responses"].unbind()
    data[SUPPORT] = jagged(
        [ids.to(torch.int32) if share else filler(torch.int32) for ids, share in zip(responses, shares, strict=True)]
    )
    tokens = score(data)
    advantages = [row.clone() for row in data["advantages"].unbind()]
    teacher, old, masks = (data[name].unbind() for name in (TEACHER_LOG_PROBS, "old_log_probs", "response_mask"))
    sums = torch.zeros(3, dtype=torch.float64)  # tokens, their ratios, those that were clipped
    for row in [index for index, share in enumerate(shares) if share]:
        given = teacher_ratio_advantages(advantages[row], teacher[row], old[row], epsilon=epsilon, weight=shares[row])
        log_ratio = torch.sign(advantages[row]) * (teacher[row] - old[row])
        valid = masks[row].bool() & (advantages[row] != 0)
        clipped = (log_ratio.exp() < 1 - epsilon) | (log_ratio.exp() > 1 + epsilon)
        factor = 1 + shares[row] * (log_ratio.exp().clamp(1 - epsilon, 1 + epsilon) - 1)
        sums += torch.stack([valid.sum(), factor[valid].sum(), (clipped & valid).sum()]).double()
        advantages[row] = given
    data["advantages"] = jagged(advantages)
    for name in (SUPPORT, TEACHER_LOG_PROBS, TEACHER_ENTROPY):
        del data[name]
    sums = sums.to(get_device_id())
    dist.all_reduce(sums, group=group)
    count, factors, clipped_count = sums.tolist()
    if count == 0:
        return tokens, {}
    return tokens, {"srpo/credit_mean": factors / count, "srpo/frac_credit_clipped": clipped_count / count}

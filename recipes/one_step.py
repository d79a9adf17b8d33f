"""One step of SRPO on random logits, read from top to bottom: ``python -m recipes.one_step``.

The functions are those that the training calls; they need torch and nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from srpo_verl.functional import (
    Routing,
    entropy_weights,
    group_advantages,
    importance_ratio,
    ppo_token_loss,
    route_samples,
    score_teacher,
    srpo_objective,
    token_losses,
    topk_support,
)

# B rollouts, T response tokens at most, V vocabulary, K support; N = B * T, S tokens of distilled rows.
T, V, K = 6, 50, 8
# One, three and none of four rollouts are correct.
PROMPTS = ["2 + 3 = ?"] * 4 + ["7 * 8 = ?"] * 4 + ["9 - 4 = ?"] * 4
REWARDS = [1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0]


class Step(NamedTuple):
    """What one step computes; the shapes are in the names."""

    routing: Routing
    advantages_B: torch.Tensor
    weights_BT: torch.Tensor
    grpo_loss_BT: torch.Tensor
    sdpo_loss_BT: torch.Tensor
    loss: torch.Tensor


def srpo_step(rewards_B, prompts, responses_BT, mask_BT, logits_BTV, old_log_probs_BT, teach) -> Step:
    """Rollouts with rewards in, the loss out. `teach` gives the teacher's logits of the rows it is asked for."""
    # (1) Correct rollouts take GRPO's loss, failed ones with a correct sibling are distilled.
    routing = route_samples(rewards_B, prompts)
    distilled_BT = routing.sdpo_B[:, None] & mask_BT

    # (2) The advantage of a rollout: its reward, less the mean of its group.
    advantages_B = group_advantages(rewards_B, prompts)

    # (3) The student's K most likely tokens, and what the self-teacher, which sees the sibling's solution, makes of
    # them; the divergence between the two.
    logits_NV, distilled_N = logits_BTV.flatten(0, 1), distilled_BT.flatten()
    support_SK = topk_support(logits_NV, K, positions_N=distilled_N.nonzero().flatten())
    teacher_SK, entropy_S = score_teacher(teach(routing.sdpo_B)[mask_BT[routing.sdpo_B]], support_SK)
    student = token_losses(
        logits_NV,
        responses_BT.flatten(),
        distilled_N=distilled_N,
        support_SK=support_SK,
        teacher_log_probs_SK=teacher_SK,
    )
    log_probs_BT, divergence_BT = (x_N.view_as(mask_BT) for x_N in (student.log_probs_N, student.divergence_N))

    # (4) Tokens that the teacher is sure of weigh more; the mean of the weights is 1.
    entropy_BT = torch.zeros(mask_BT.shape).masked_scatter(distilled_BT, entropy_S)
    weights_BT = entropy_weights(entropy_BT, distilled_BT)

    # (5) Both losses over one denominator, the number of all response tokens.
    advantages_BT = advantages_B[:, None].expand_as(mask_BT)
    grpo_loss_BT = ppo_token_loss(log_probs_BT, old_log_probs_BT, advantages_BT)
    sdpo_loss_BT = divergence_BT * importance_ratio(log_probs_BT, old_log_probs_BT)
    loss = srpo_objective(grpo_loss_BT, sdpo_loss_BT, weights_BT, mask_BT, routing.sdpo_B)
    return Step(routing, advantages_B, weights_BT, grpo_loss_BT, sdpo_loss_BT, loss)


def random_rollouts(seed: int = 0) -> dict:
    """Arguments of `srpo_step`: responses of random lengths by a policy that has not moved since it sampled them."""
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = torch.randn(len(PROMPTS), T, V, generator=generator).requires_grad_()
    responses_BT = torch.randint(V, (len(PROMPTS), T), generator=generator)
    lengths_B = torch.randint(2, T + 1, (len(PROMPTS),), generator=generator)
    teacher_BTV = logits_BTV.detach() + torch.randn(logits_BTV.shape, generator=generator)
    log_probs_BTV = logits_BTV.detach().log_softmax(-1)
    return {
        "rewards_B": torch.tensor(REWARDS, dtype=torch.float32),
        "prompts": PROMPTS,
        "responses_BT": responses_BT,
        "mask_BT": torch.arange(T) < lengths_B[:, None],
        "logits_BTV": logits_BTV,
        "old_log_probs_BT": log_probs_BTV.gather(-1, responses_BT[..., None])[..., 0],
        "teach": lambda rows_B: teacher_BTV[rows_B],
    }


def table(step: Step, mask_BT: torch.Tensor) -> str:
    """One line for every rollout, and the loss."""
    lines = ["prompt     reward  route  shown  advantage  tokens  sum of its loss"]
    for row, prompt in enumerate(PROMPTS):
        is_distilled = bool(step.routing.sdpo_B[row])
        shown = f"no. {int(step.routing.sibling_B[row])}" if is_distilled else "-"
        advantage = "-" if is_distilled else f"{float(step.advantages_B[row]):+.2f}"
        loss_BT = (step.weights_BT * step.sdpo_loss_BT if is_distilled else step.grpo_loss_BT).detach()
        lines.append(
            f"{prompt}  {REWARDS[row]:>6}  {'SDPO' if is_distilled else 'GRPO'}  {shown:>5}  {advantage:>9}  "
            f"{int(mask_BT[row].sum()):>6}  {float(loss_BT[row][mask_BT[row]].sum()):>15.3f}"
        )
    return "\n".join([*lines, f"loss {float(step.loss.detach()):.4f} = their sum over {int(mask_BT.sum())} tokens"])


def main() -> None:
    """Print the step of random rollouts, and how large its gradient is."""
    rollouts = random_rollouts()
    step = srpo_step(**rollouts)
    step.loss.backward()
    print(table(step, rollouts["mask_BT"]))
    print(f"norm of the gradient in the logits {float(rollouts['logits_BTV'].grad.norm()):.4f}")


if __name__ == "__main__":
    main()

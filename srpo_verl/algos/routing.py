"""Equation (1), paper §3.1: which rollout feeds which branch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from srpo_verl.algos.routings import ROUTINGS, Rows, compute_shares

__all__ = ["ROUTINGS", "SELECTIONS", "Routing", "RoutingCase", "choose_siblings", "group_indices", "route_samples"]


class RoutingCase(Enum):
    """The four cells of the decision table: c (is the rollout correct?) by m (is there teacher information?)."""

    CORRECT_WITH_TEACHER = (True, True)
    CORRECT_WITHOUT_TEACHER = (True, False)  # the only correct one of its group: nobody else to learn from
    FAILED_WITH_TEACHER = (False, True)
    FAILED_WITHOUT_TEACHER = (False, False)  # nobody of the group is correct and there is no feedback


SELECTIONS = ("first", "random", "shortest")


@dataclass(frozen=True, eq=False)
class Routing:
    """Result of `route_samples`; every field has shape (B,) and lives on the device of the rewards."""

    correct_B: torch.Tensor  # bool, c_i: the reward reaches the threshold
    sibling_B: torch.Tensor  # int64, index in the batch of the correct sibling that demonstrates; -1: there is none
    teacher_B: torch.Tensor  # bool, m_i: there is a sibling or other teacher information
    pass_rate_B: torch.Tensor  # float64, p: share of the row's group that is correct
    grpo_share_B: torch.Tensor  # float32, g_i: factor of the row's GRPO loss
    sdpo_share_B: torch.Tensor  # float32, d_i: factor of its distillation loss
    advantage_B: torch.Tensor  # float32, what replaces the group-relative advantage; NaN where that one stays

    @property
    def sdpo_B(self) -> torch.Tensor:
        """bool: distilled, d_i > 0. Their valid tokens are Omega of equation (4)."""
        return self.sdpo_share_B > 0

    @property
    def grpo_B(self) -> torch.Tensor:
        """bool: gets the GRPO loss, g_i > 0."""
        return self.grpo_share_B > 0

    def case(self, case: RoutingCase) -> torch.Tensor:
        """Mask, bool of shape (B,), of the samples in one cell of the decision table."""
        is_correct, has_teacher = case.value
        return (self.correct_B == is_correct) & (self.teacher_B == has_teacher)


def route_samples(
    rewards_B: torch.Tensor,
    group_ids: Sequence[Hashable] | torch.Tensor | Any,
    *,
    success_threshold: float = 0.5,
    feedback_B: torch.Tensor | None = None,
    select: str = "first",
    routing: str = "sample",
    generator: torch.Generator | None = None,
    lengths_B: torch.Tensor | None = None,
    siblings_teach: bool = True,
    step: int = 1,
    coefficient: float = 1.0,
    skip_certain_prompts: bool = False,
    mix_lambda: float = 0.9,
    negative_advantage: float = 0.5,
) -> Routing:
    """Give every rollout its shares of the two losses. Equation (1), paper §3.1.

        c_i = 1[r_i >= success_threshold]
        m_i = 1[a correct rollout j != i of the same prompt exists, or there is feedback on y_i]
        z_i = (1 - c_i) * m_i
        g_i = 1 - z_i,    d_i = z_i        routing="sample", the paper's

    ===================================  ===  ===  ======  ==============  ====================================
    case                                  c    m   sample  none            what it is
    ===================================  ===  ===  ======  ==============  ====================================
    RoutingCase.CORRECT_WITH_TEACHER      1    1   GRPO    GRPO            has a sibling, and does not need it
    RoutingCase.CORRECT_WITHOUT_TEACHER   1    0   GRPO    GRPO            the only correct one of its group
    RoutingCase.FAILED_WITH_TEACHER       0    1   SDPO    GRPO            a sibling can show how
    RoutingCase.FAILED_WITHOUT_TEACHER    0    0   GRPO    GRPO            fallback; an all-failed group
    ===================================  ===  ===  ======  ==============  ====================================

    Args:
        rewards_B: one scalar per rollout, finite.
        group_ids: B hashable values (a list, a numpy array) or a tensor of shape (B,); equal values: same prompt.
        success_threshold: a rollout is correct where its reward is at least this.
        feedback_B: bool of shape (B,); True where environment feedback on the rollout counts as teacher information.
        select: which correct sibling demonstrates. "first": the first in the order of the batch; "random": each with
            equal probability, drawn independently for every rollout; "shortest": the one with the smallest length,
            the first of equal ones.
        routing: a name of `ROUTINGS` (algos/routings.py), each with its g and d:

            * "sample": 1 - z, z. Equation (1), SRPO. A partition: every rollout is in exactly one branch.
            * "none": 1, 0. The GRPO baseline.
            * "all": 0, m. The SDPO baseline: a correct rollout is distilled towards another correct sibling, rollouts
              without teacher information are in neither branch.
            * "correct_only", "failed_only": 0, m c and 0, m (1 - c). Figure 1(b).
            * "advantage_mix": lambda, (1 - lambda) m. The Advantage Mix of Table 2.
            * "handover": 1 - z (1 - p), z (1 - p). p is the pass rate of the group.
            * "keep_negative": 1, z.
            * "fixed_negative": 1, 0, and the advantage of failed rollouts with a correct sibling is a constant.

            Or a function of your own as "module:function"; it gets `Rows` and returns `Shares`.
        generator: source of the random choice; default: torch's global CPU generator.
        lengths_B: response length of every rollout in tokens; needed for select="shortest", unused otherwise.
        siblings_teach: whether a correct sibling counts as teacher information.
        step: number of the training step, for routings that depend on it.
        coefficient: s in [0, 1] of a schedule over steps: d becomes s d, and g becomes 1 - s (1 - g). At 1 the
            routing is as it is, at 0 it is GRPO.
        skip_certain_prompts: d is 0 where the pass rate is 0 or 1, whose weight by pass rate is 0.
        mix_lambda: lambda of "advantage_mix".
        negative_advantage: minus the constant of "fixed_negative".

    Returns:
        Routing. `sibling_B` is set for correct rollouts too wherever *another* correct one exists, whatever the
        routing; it is never the rollout itself. An empty batch gives empty tensors.

    Raises:
        ValueError: a shape that is not (B,), a reward that is NaN or infinite (names the index), an unknown `routing`
            or `select`, "shortest" without `lengths_B`, a coefficient outside [0, 1], wrong shares of a routing of
            your own.
    """
    rewards_B = torch.as_tensor(rewards_B)
    check_rewards(rewards_B)
    batch_size, device = rewards_B.shape[0], rewards_B.device
    if not 0 <= coefficient <= 1:
        raise ValueError(f"coefficient must be in [0, 1], got {coefficient}")
    group_B = group_indices(group_ids, batch_size).to(device)

    correct_B = rewards_B >= success_threshold
    sibling_B = choose_siblings(correct_B, group_B, select=select, generator=generator, lengths_B=lengths_B)
    teacher_B = (sibling_B >= 0) & siblings_teach
    if feedback_B is not None:
        feedback_B = torch.as_tensor(feedback_B, device=device)
        if feedback_B.shape != (batch_size,) or feedback_B.dtype != torch.bool:
            raise ValueError(
                f"feedback_B must be bool of shape ({batch_size},), got {feedback_B.dtype} of shape "
                f"{tuple(feedback_B.shape)}"
            )
        teacher_B = teacher_B | feedback_B
    pass_rate_B = group_means(correct_B.double(), group_B)
    rows = Rows(
        correct_B=correct_B.double(),
        teacher_B=teacher_B.double(),
        sibling_B=(sibling_B >= 0).double(),
        pass_rate_B=pass_rate_B,
        step=step,
        mix_lambda=mix_lambda,
        negative_advantage=negative_advantage,
    )
    shares = compute_shares(routing, rows)
    grpo_share_B, sdpo_share_B = shares.grpo_B, shares.sdpo_B
    if coefficient < 1:
        grpo_share_B, sdpo_share_B = 1 - coefficient * (1 - grpo_share_B), coefficient * sdpo_share_B
    if skip_certain_prompts:
        sdpo_share_B = sdpo_share_B.masked_fill((pass_rate_B == 0) | (pass_rate_B == 1), 0.0)
    advantage_B = torch.full_like(grpo_share_B, float("nan")) if shares.advantage_B is None else shares.advantage_B
    return Routing(correct_B, sibling_B, teacher_B, pass_rate_B, grpo_share_B, sdpo_share_B, advantage_B)


def choose_siblings(
    correct_B: torch.Tensor,
    group_B: torch.Tensor,
    *,
    select: str,
    generator: torch.Generator | None = None,
    lengths_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """For every rollout, the index of a correct rollout of its group other than itself; -1 where there is none.

    Args:
        correct_B: bool of shape (B,).
        group_B: int64 of shape (B,), from `group_indices`.
        select, generator, lengths_B: as in `route_samples`.

    Returns:
        int64 of shape (B,).

    Raises:
        ValueError: unknown `select`; "shortest" without `lengths_B` or with a wrong shape.
    """
    batch_size, device = correct_B.shape[0], correct_B.device
    if select not in SELECTIONS:
        raise ValueError(f"select must be one of {', '.join(SELECTIONS)}, got {select!r}")
    if select == "shortest":
        if lengths_B is None:
            raise ValueError("select='shortest' needs lengths_B, the response length of every rollout")
        lengths_B = torch.as_tensor(lengths_B, device=device)
        if lengths_B.shape != (batch_size,):
            raise ValueError(f"lengths_B must have shape ({batch_size},), got {tuple(lengths_B.shape)}")
        preference = torch.argsort(lengths_B, stable=True).tolist()
    else:
        preference = list(range(batch_size))
    drawn = [0.0] * batch_size
    if select == "random" and batch_size > 0:
        draw_device = generator.device if generator is not None else torch.device("cpu")
        drawn = torch.rand(batch_size, generator=generator, dtype=torch.float64, device=draw_device).tolist()

    # A batch has some hundred rows: lists say it more plainly than tensors, and cost nothing.
    is_correct, groups = correct_B.tolist(), group_B.tolist()
    correct_of: dict[int, list[int]] = {}
    for row in preference:
        if is_correct[row]:
            correct_of.setdefault(groups[row], []).append(row)
    siblings = []
    for row, group in enumerate(groups):
        others = [other for other in correct_of.get(group, ()) if other != row]
        siblings.append(others[int(drawn[row] * len(others))] if others else -1)
    return torch.tensor(siblings, dtype=torch.int64, device=device)


def group_indices(group_ids: Sequence[Hashable] | torch.Tensor | Any, batch_size: int) -> torch.Tensor:
    """Number the groups 0, 1, ...: int64 of shape (B,), equal where the ids are equal.

    Raises:
        ValueError: not exactly `batch_size` ids.
    """
    if isinstance(group_ids, torch.Tensor):
        if group_ids.shape != (batch_size,):
            raise ValueError(f"group_ids must have shape ({batch_size},), got {tuple(group_ids.shape)}")
        return torch.unique(group_ids, return_inverse=True)[1]
    if len(group_ids) != batch_size:
        raise ValueError(f"group_ids must have one id for each of {batch_size} rewards, got {len(group_ids)}")
    number_of: dict[Hashable, int] = {}
    return torch.tensor([number_of.setdefault(i, len(number_of)) for i in group_ids], dtype=torch.int64)


def group_means(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Mean of the values of the row's group, for every row. Values floating, groups from `group_indices`: (B,)."""
    sums_B = torch.zeros_like(values_B).index_add(0, group_B, values_B)
    return (sums_B / torch.bincount(group_B, minlength=len(group_B)).clamp(min=1))[group_B]


def check_rewards(rewards_B: torch.Tensor) -> None:
    """Raise ValueError unless the rewards are real, of shape (B,), and finite."""
    if rewards_B.dim() != 1:
        raise ValueError(f"rewards_B must have shape (B,), got {tuple(rewards_B.shape)}")
    bad_B = ~torch.isfinite(rewards_B)
    if bool(bad_B.any()):
        index = int(bad_B.nonzero()[0])
        raise ValueError(f"rewards_B must be finite, got {float(rewards_B[index])} at index {index}")

"""The teacher as a judge of single tokens instead of a target: RLSD, arXiv 2604.03128."""

from __future__ import annotations

import torch


@torch.no_grad()
def teacher_ratio_advantages(
    advantages: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    *,
    epsilon: float,
    weight: float = 1.0,
) -> torch.Tensor:
    """Advantages of tokens, larger where the teacher agrees with their sign. In the place of A in equation (2).

        A_t = A * ((1 - weight) + weight * clip((q(y_t) / p(y_t))^sign(A), 1 - epsilon, 1 + epsilon))

    A token of a good response that the teacher finds likelier than the student did gets more credit, a token of a bad
    one that the teacher finds less likely gets more blame. The sign never changes.

    Args:
        advantages: A of every token; any shape.
        teacher_log_probs: log q of the sampled tokens, nats, same shape.
        old_log_probs: log p of the same tokens under the policy that the update starts from, same shape.
        epsilon: in (0, 1).
        weight: in [0, 1], how much of the teacher's factor is taken; 0 leaves A as it is.

    Returns:
        Shape and dtype of the advantages.

    Raises:
        ValueError: shapes that differ, an epsilon outside (0, 1), a weight outside [0, 1].
    """
    if not advantages.shape == teacher_log_probs.shape == old_log_probs.shape:
        shapes = (tuple(t.shape) for t in (advantages, teacher_log_probs, old_log_probs))
        raise ValueError(f"shapes must be equal, got {', '.join(map(str, shapes))}")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be in (0, 1), got {epsilon}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}")
    ratio = torch.exp(torch.sign(advantages) * (teacher_log_probs - old_log_probs))
    factor = ratio.clamp(1 - epsilon, 1 + epsilon).to(advantages.dtype)
    return advantages * (factor if weight == 1 else 1 + weight * (factor - 1))

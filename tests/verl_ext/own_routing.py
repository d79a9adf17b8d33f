"""The routing of a user's own that docs/algorithm.md shows; a test compares the two."""

import torch

from srpo_verl.functional import Rows, Shares


def my_routing(rows: Rows) -> Shares:
    """Distil failures of hard prompts, half as strongly; all rows take GRPO as well."""
    hard_B = (rows.pass_rate_B <= 0.5).double()
    d_B = 0.5 * hard_B * (1 - rows.correct_B) * rows.teacher_B
    return Shares(grpo_B=torch.ones_like(d_B), sdpo_B=d_B)

"""The readable step: the README shows its code and its output, and it is the step of the equations."""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch

from recipes import one_step

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_shows_the_code_and_what_it_prints(capsys):
    assert f"```python\n{inspect.getsource(one_step.srpo_step)}```" in README
    one_step.main()
    (shown,) = re.findall(r"```text\n(prompt .*?)```", README, re.DOTALL)
    assert shown == capsys.readouterr().out


@pytest.fixture
def rollouts():
    return one_step.random_rollouts(seed=3)


def test_its_loss_is_that_of_the_equations_token_by_token(rollouts):
    """In float64, from softmaxes: no function of the package, the routing by hand from the rewards."""
    teacher_BTV = rollouts["teach"](torch.ones(12, dtype=torch.bool)).double().softmax(-1)
    student_BTV = rollouts["logits_BTV"].detach().double().softmax(-1)
    total, surprise = 0.0, []
    for row, reward in enumerate(one_step.REWARDS):
        group = one_step.REWARDS[row - row % 4 : row - row % 4 + 4]
        is_distilled = reward == 0 and any(group)
        for t in range(int(rollouts["mask_BT"][row].sum())):
            if not is_distilled:
                total -= reward - sum(group) / 4  # the ratio is 1
                continue
            p, q = student_BTV[row, t], teacher_BTV[row, t]
            top = p.argsort(descending=True)[: one_step.K]
            p_K, q_K = (torch.cat([x[top], 1 - x[top].sum()[None]]) for x in (p, q))
            m_K = (p_K + q_K) / 2
            jensen_shannon = ((p_K * (p_K / m_K).log()).sum() + (q_K * (q_K / m_K).log()).sum()) / 2
            surprise.append((math.exp((q * q.log()).sum()), float(jensen_shannon)))
    mean = sum(weight for weight, _ in surprise) / len(surprise)
    total += sum(weight / mean * divergence for weight, divergence in surprise)
    loss = one_step.srpo_step(**rollouts).loss
    # fp32 sums of some 50 terms of at most 1.
    assert loss.item() == pytest.approx(total / int(rollouts["mask_BT"].sum()), abs=1e-5)


def test_what_nobody_solved_and_what_is_padding_moves_nothing(rollouts):
    one_step.srpo_step(**rollouts).loss.backward()
    moved_BT = rollouts["logits_BTV"].grad.abs().sum(-1) > 0
    assert not moved_BT[8:].any()  # the third prompt
    assert torch.equal(moved_BT[:8], rollouts["mask_BT"][:8])

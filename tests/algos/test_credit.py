"""Credit by the teacher's ratio: by hand, its bounds, and what it never does."""

import math

import pytest
import torch

from srpo_verl.functional import teacher_ratio_advantages


def test_by_hand():
    advantages = torch.tensor([0.5, 0.5, 0.5, -0.5, -0.5, -0.5, 0.0])
    teacher = torch.tensor([0.55, 0.9, 0.1, 0.45, 0.1, 0.9, 0.9]).log()
    student = torch.tensor([0.5] * 7).log()
    # (q/p)^sign(A): 1.1, 1.8, 0.2, 1/0.9, 5, 1/1.8, 1
    expected = [0.55, 0.75, 0.25, -0.5 / 0.9, -0.75, -0.5 / 1.8, 0.0]
    given = teacher_ratio_advantages(advantages, teacher, student, epsilon=0.5)
    assert given.tolist() == pytest.approx(expected)
    # A quarter of the way from the advantages to these.
    some = teacher_ratio_advantages(advantages, teacher, student, epsilon=0.5, weight=0.25)
    assert some.tolist() == pytest.approx(
        [0.75 * a + 0.25 * b for a, b in zip(advantages.tolist(), expected, strict=True)]
    )
    assert torch.equal(teacher_ratio_advantages(advantages, teacher, student, epsilon=0.5, weight=0.0), advantages)
    with pytest.raises(ValueError, match="weight must be in"):
        teacher_ratio_advantages(advantages, teacher, student, epsilon=0.5, weight=1.1)


def test_properties():
    generator = torch.Generator().manual_seed(4)
    advantages = torch.randn(6, 9, generator=generator)
    teacher, student = (-5 * torch.rand(6, 9, generator=generator) for _ in range(2))
    given = teacher_ratio_advantages(advantages, teacher, student.requires_grad_(), epsilon=0.3)
    assert not given.requires_grad
    assert torch.equal(given.sign(), advantages.sign())
    factor = given / advantages
    assert float(factor.min()) == pytest.approx(0.7)
    assert float(factor.max()) == pytest.approx(1.3)
    # Agreement with the sign raises the credit.
    assert ((factor > 1) == ((teacher - student) * advantages.sign() > 0)).all()
    assert torch.equal(teacher_ratio_advantages(advantages, teacher, teacher, epsilon=0.3), advantages)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, math.nan])
def test_impossible_bounds(epsilon):
    with pytest.raises(ValueError, match="epsilon must be in"):
        teacher_ratio_advantages(*torch.zeros(3, 2), epsilon=epsilon)


def test_shapes():
    with pytest.raises(ValueError, match=r"shapes must be equal, got \(2,\), \(3,\), \(2,\)"):
        teacher_ratio_advantages(torch.zeros(2), torch.zeros(3), torch.zeros(2), epsilon=0.5)

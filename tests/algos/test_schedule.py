"""The coefficient of distillation over steps."""

import pytest

from srpo_verl.algos.schedule import distillation_coefficient


def test_one_then_a_line_then_nothing():
    values = [distillation_coefficient(step, start=2, end=6) for step in range(1, 9)]
    assert values == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("end", [3, 2])
def test_the_end_comes_after_the_start(end):
    with pytest.raises(ValueError, match=rf"start=3, got {end}"):
        distillation_coefficient(1, start=3, end=end)

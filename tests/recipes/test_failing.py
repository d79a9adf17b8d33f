"""Runs made to fail: when ten points are lost, and what counts as warned."""

import pytest

from recipes.mini import failing, losses


def curve(*values):
    return [(10 * number, value) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "lost"),
    [
        ((0.2, 0.5, 0.39, 0.38), 20),  # two in a row, the first of them counts
        ((0.2, 0.5, 0.39, 0.45, 0.39), None),  # one alone may be chance
        ((0.2, 0.5, 0.6, 0.51, 0.52), None),
        ((0.5, 0.3, 0.2), 10),
    ],
)
def test_ten_points_below_the_best_twice_in_a_row(values, lost):
    assert losses.first_loss(curve(*values)) == lost


def test_a_run_is_told_in_one_word():
    before, soon, later, never, nothing, false = losses.TOLD
    cases = {
        (50, 50): before,
        (50, 51): soon,
        (50, 61): later,
        (50, None): never,
        (None, None): nothing,
        (None, 3): false,
    }
    assert {case: losses.told(*case) for case in cases} == cases


def test_every_case_is_one_thing_wrong_and_a_command_of_stock_verl(tmp_path):
    for name, case in failing.CASES.items():
        command = failing.command_of(case, 0, tmp_path / "model", tmp_path / "data", tmp_path / "run")
        assert "verl.trainer.main_ppo" in command
        assert set(case.overrides) <= set(command), name
        assert case.overrides or case.learning_rate != failing.RATE, name

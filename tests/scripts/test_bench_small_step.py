"""The benchmark of the small step: which steps count, and what their spread is."""

import pytest

from scripts.bench_small_step import main, summarize


def test_the_first_steps_do_not_count():
    seconds = {1: 9.0, 2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0, 6: 5.0, 7: 6.0}
    metrics = {step: {"timing_s/gen": value, "timing_s/step": 2 * value} for step, value in seconds.items()}
    assert summarize(metrics, skip=1) == [
        ("rollouts and rewards", 3.5, 2.0, 5.0),
        ("step", 7.0, 4.0, 10.0),
    ]
    assert summarize(metrics, skip=6) == [("rollouts and rewards", 6.0, 6.0, 6.0), ("step", 12.0, 12.0, 12.0)]


def test_a_run_that_counts_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--steps", "5", "--skip", "5"])
    assert "leaves nothing to count" in capsys.readouterr().err

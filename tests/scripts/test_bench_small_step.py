"""The benchmark of the small step: which steps count, and what their spread is."""

import pytest

from scripts.bench_small_step import main, processor_time, summarize


def test_the_first_steps_do_not_count():
    seconds = {1: 9.0, 2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0, 6: 5.0, 7: 6.0}
    metrics = {step: {"timing_s/gen": value, "timing_s/step": 2 * value} for step, value in seconds.items()}
    assert summarize(metrics, skip=1) == [
        ("rollouts and rewards", 3.5, 2.0, 5.0),
        ("step", 7.0, 4.0, 10.0),
    ]
    assert summarize(metrics, skip=6) == [("rollouts and rewards", 6.0, 6.0, 6.0), ("step", 12.0, 12.0, 12.0)]


def test_processor_time_is_a_mean_over_the_steps_that_count():
    assert processor_time({0: 1.0, 1: 9.0, 2: 10.0, 3: 13.0}, skip=1) == 2.0


@pytest.mark.parametrize("skip", ["0", "5"])
def test_a_run_that_counts_nothing_is_refused(skip, capsys):
    with pytest.raises(SystemExit):
        main(["--steps", "5", "--skip", skip])
    assert "at least the first step is left out" in capsys.readouterr().err

"""What a person sees of a run: this package's lines, one a step; the file has all of it."""

import io
import sys

import pytest

from srpo_verl.console import everything_into, is_quiet
from srpo_verl.errors import ConfigError
from srpo_verl.progress import Progress

# As Ray's driver prints them: with and without colours, of an actor and of a task, behind a bar that overwrites.
PRINTED = """\
ray init kwargs: {'num_cpus': None}
\x1b[36m(TaskRunnerV1 pid=17)\x1b[0m {'actor_rollout_ref': {'actor': 1}}
\x1b[36m(TaskRunnerV1 pid=17)\x1b[0m srpo_verl: 0:00:12  training, step 1 to 4
(TaskRunnerV1 pid=17, ip=10.0.0.2) srpo_verl: 0:00:20  step 1/4
(pid=18) UserWarning: threads
(WorkerDict pid=19) srpo_verl is mentioned, (not) said: srpo_verl: x
(TaskRunnerV1 pid=17) Training Progress: 1%\rsrpo_verl: 0:00:30  step 2/4
Traceback (most recent call last):
"""
SHOWN = """\
0:00:12  training, step 1 to 4
0:00:20  step 1/4
0:00:30  step 2/4
Traceback (most recent call last):
"""


def test_the_console_shows_this_package_s_lines_and_the_driver_s_and_the_file_has_all(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    path = tmp_path / "new" / "run.out"
    end = everything_into(path)
    # In pieces, as `print` writes, and with an end that has no line of its own.
    for piece in (*PRINTED.partition("17, ip"), "half"):
        sys.stdout.write(piece)
    end()
    assert sys.stdout is screen
    assert screen.getvalue() == f"{SHOWN}half\n"
    assert path.read_bytes().decode() == f"{PRINTED}half\n"
    end = everything_into(path)
    print("the next attempt")
    end()
    assert path.read_bytes().decode() == f"{PRINTED}half\nthe next attempt\n"


def test_the_switch():
    assert is_quiet({})
    assert not is_quiet({"SRPO_VERL_CONSOLE": "full"})
    with pytest.raises(ConfigError, match=r"SRPO_VERL_CONSOLE='?off'?: has to be quiet or full"):
        is_quiet({"SRPO_VERL_CONSOLE": "off"})


def test_a_line_a_step_with_the_time_that_is_left():
    times = iter([0.0, 65.0, 70.0, 100.0, 100.0, 160.0])
    progress = Progress(lambda: next(times))
    assert progress.phase("workers") == "0:01:05  workers"
    progress.begin(11)  # after a resumption; at 70 s
    metrics = {"srpo/frac_correct": 0.25, "srpo/frac_sdpo": 0.5, "timing_s/step": 28.0, "other": 1}
    # 9 of 10 steps are left, of 30 s each.
    assert (
        progress.step(11, 20, metrics)
        == "0:01:40  step 11/20  correct  25%  distilled  50%   28.0 s/step, ends in 0:04:30"
    )
    # At the last step nothing is left; a validation stands at the end of its line.
    last = progress.step(20, 20, {"val-core/a/acc/mean@16": 0.625})
    assert last == "0:02:40  step 20/20  ACCURACY 62.5%"


def test_a_budget_ends_a_run_before_its_last_step():
    times = iter([0.0, 0.0, 30.0, 30.0])
    progress = Progress(lambda: next(times))
    progress.begin(1)
    assert progress.step(1, 1000, {}, seconds_left=90.0).endswith("ends in 0:01:30")

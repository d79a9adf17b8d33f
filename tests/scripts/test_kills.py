"""Into what a kill fell, from what is left in the run's folder."""

import os
import time

import pytest

from scripts.endurance.kills import moment
from srpo_verl import checkpoints

BEFORE = time.time() - 60


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ([], "start"),
        (["srpo.jsonl"], "step"),
        (["checkpoints/global_step_2/actor"], "start"),
        (["srpo.jsonl", f"checkpoints/global_step_2/{checkpoints.UNFINISHED}"], "save"),
        (["srpo.jsonl", f"checkpoints/global_step_2{checkpoints.REMOVED}"], "removal"),
    ],
)
def test_moment(left, expected, tmp_path):
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("validation\nstep\n")
    assert moment(tmp_path, BEFORE) == expected
    assert moment(tmp_path, time.time() + 60) == "start"  # all of it is an earlier attempt's


def test_the_validation_before_the_first_step_belongs_to_the_start(tmp_path):
    (tmp_path / "srpo.jsonl").write_text("validation\n")
    assert moment(tmp_path, BEFORE) == "start"


def test_a_folder_that_is_moved_aside_counts_from_its_move(tmp_path):
    folder = tmp_path / "checkpoints" / "global_step_2"
    folder.mkdir(parents=True)
    os.utime(folder, (1, 1))
    folder.rename(folder.with_name(folder.name + checkpoints.REMOVED))
    assert moment(tmp_path, BEFORE) == "removal"

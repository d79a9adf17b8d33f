"""Checkpoints as folders: what is whole, kept, removed and repaired, whenever a run is killed."""

import json

import pytest

from srpo_verl import checkpoints
from srpo_verl.checkpoints import (
    BEST,
    LATEST,
    MARK,
    begin,
    folder_of,
    mark,
    read_step,
    repair,
    rotate,
    whole,
)


def save(root, step, accuracy=None, size=100):
    """As the trainer does it."""
    begin(root, step)
    folder = folder_of(root, step)
    (folder / "actor").mkdir(parents=True, exist_ok=True)
    (folder / "actor" / "model.pt").write_bytes(bytes(size))
    (folder / "data.pt").write_bytes(b"x")
    (root / LATEST).write_text(str(step))
    mark(root, step, accuracy)


def steps(root):
    return sorted(int(path.name.removeprefix("global_step_")) for path in root.glob("global_step_*"))


def test_the_best_stays_whatever_comes_after_it(tmp_path):
    for step, accuracy in enumerate([0.5, 0.8, 0.7, None, 0.8, 0.6], start=1):
        save(tmp_path, step, accuracy)
        rotate(tmp_path, keep_last=2, keep_best=True)
    assert steps(tmp_path) == [2, 5, 6]  # the first of the two best, and the last two
    assert read_step(tmp_path / BEST) == 2
    assert rotate(tmp_path, keep_last=1, keep_best=False) == [2, 5]
    assert steps(tmp_path) == [6]


def test_nothing_is_removed_without_being_told(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "global_step_0" / "actor").mkdir(parents=True)  # an earlier release's, without a mark
    (tmp_path / "notes").mkdir()
    assert rotate(tmp_path, keep_last=None, keep_best=True) == []
    assert rotate(tmp_path, keep_last=1, keep_best=True) == [1, 2]
    assert steps(tmp_path) == [0, 3]


def test_a_disk_budget_takes_the_oldest_and_spares_the_best_and_the_newest(tmp_path):
    for step, accuracy in [(1, 0.9), (2, 0.1), (3, 0.2), (4, 0.3)]:
        save(tmp_path, step, accuracy, size=1000)
    assert rotate(tmp_path, keep_last=4, keep_best=True, max_bytes=3500) == [2]
    assert rotate(tmp_path, keep_last=4, keep_best=True, max_bytes=10) == [3]
    assert steps(tmp_path) == [1, 4]


def test_a_kill_inside_a_removal_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", lambda *args, **kwargs: None)  # killed after the rename
        rotate(tmp_path, keep_last=1, keep_best=False)
    assert [c.step for c in whole(tmp_path)] == [2]
    assert (tmp_path / "global_step_1.removed" / "data.pt").exists()
    assert "global_step_1" in repair(tmp_path)[0]
    assert [path.name for path in tmp_path.glob("global_step_*")] == ["global_step_2"]
    assert repair(tmp_path) == []


@pytest.mark.parametrize("text", ["", "4x"])
def test_a_cut_off_tracker_names_the_newest_whole_checkpoint_again(tmp_path, text):
    for step in (2, 4):
        save(tmp_path, step)
    begin(tmp_path, 6)
    (tmp_path / LATEST).write_text(text)
    done = repair(tmp_path)
    assert "step 4 again" in done[0]
    assert "half-written" in done[1]
    assert read_step(tmp_path / LATEST) == 4
    assert steps(tmp_path) == [2, 4]


def test_what_veRL_names_is_whole(tmp_path):
    save(tmp_path, 2)
    begin(tmp_path, 4)
    (tmp_path / LATEST).write_text("4")  # and killed before the mark
    assert repair(tmp_path) == []
    assert read_step(tmp_path / LATEST) == 4
    assert [c.step for c in whole(tmp_path)] == [2, 4]


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(tmp_path):
    for step in (2, 4):
        save(tmp_path, step)
    begin(tmp_path, 4)  # and killed here
    assert [c.step for c in whole(tmp_path)] == [2]
    assert read_step(tmp_path / LATEST) == 2
    begin(tmp_path, 2)
    assert not (tmp_path / LATEST).exists()


def test_a_mark_that_is_no_mark_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    for text in ("", "[]", json.dumps({"step": 1})):
        (folder_of(tmp_path, 1) / MARK).write_text(text)
        assert whole(tmp_path) == []

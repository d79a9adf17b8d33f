"""Faults of a run in training: each ends within a bound, in one line that says what happened, and nothing is left."""

from pathlib import Path

import psutil
import pytest
import torch

from scripts.endurance.run import Started, arguments_of
from srpo_verl import checkpoints
from srpo_verl.launch.sessions import processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here"),
]
BOUND_S = 600
FAULTY = Path(__file__).parents[1] / "faulty_reward.py"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return arguments_of(tmp_path_factory.mktemp("inputs"))


def last_line(folder):
    return (folder / "stdout.log").read_text(errors="replace").rstrip().splitlines()[-1]


REWARDS = {
    "raises": "every rollout of a step failed, for a reward function",
    "not_a_number": "the reward is nan",
    "text": "can't assign a str",
    "hangs": "nothing has happened for",
}


@pytest.mark.parametrize("fault", REWARDS)
def test_a_reward_function(fault, arguments, tmp_path):
    overrides = [
        f"reward.custom_reward_function.path={FAULTY}",
        f"reward.custom_reward_function.name={fault}",
        "trainer.val_before_train=false",
        "srpo.guards.stall_minutes=0.5",
    ]
    status = Started([*arguments, *overrides], tmp_path / "run").wait(BOUND_S)
    assert status == 1
    assert last_line(tmp_path / "run").startswith("srpo_verl: the run failed: ")
    assert REWARDS[fault] in last_line(tmp_path / "run")


@pytest.mark.parametrize("victim", ["ray::WorkerDict", "ray::HFServer", "ray::TaskRunner"])
def test_a_process_that_dies(victim, arguments, tmp_path):
    """A rank in its update, a rollout engine, the trainer itself: killed after the first checkpoint."""
    folder = tmp_path / "run"
    run = Started([*arguments, "trainer.total_training_steps=40", "srpo.guards.stall_minutes=0.5"], folder)
    latest = folder / "checkpoints" / checkpoints.LATEST
    try:
        run.wait_until(lambda: checkpoints.read_step(latest) is not None)
        killed = 0
        for process in processes(run.process.pid):
            try:
                if process.cmdline() and process.cmdline()[0].startswith(victim):
                    process.kill()
                    killed += 1
            except psutil.NoSuchProcess:
                continue
        assert killed
    finally:
        status = run.wait(BOUND_S)
    assert status == 1
    assert last_line(folder).startswith("srpo_verl: the run failed: ")
    assert checkpoints.whole(folder / "checkpoints")


def test_a_full_disk_leaves_the_checkpoint_before_it(arguments, tmp_path):
    """The second checkpoint's weights are written to a device that is always full."""
    folder = tmp_path / "run"
    full = folder / "checkpoints" / "global_step_4" / "actor" / "model_world_size_1_rank_0.pt"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    assert Started(arguments, folder).wait(BOUND_S) == 1
    assert "a file of a checkpoint could not be written: is the disk full?" in last_line(folder)
    assert [c.step for c in checkpoints.whole(folder / "checkpoints")] == [2]
    assert checkpoints.read_step(folder / "checkpoints" / checkpoints.LATEST) == 2

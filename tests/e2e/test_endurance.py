"""Long runs: stopped from outside, killed, gone on with, with all their logs and the right checkpoints left."""

import json
import os
from contextlib import contextmanager

import pytest
import torch

from scripts.endurance.run import STEPS, Started, arguments_of, difference
from srpo_verl import checkpoints
from srpo_verl.budget import mean_accuracy
from srpo_verl.guards import RULES
from srpo_verl.stopping import RESUMABLE, STOPPED
from tests.support import read_metrics

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return arguments_of(tmp_path_factory.mktemp("inputs"))


def tail(folder):
    return (folder / "stdout.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert Started(arguments, folder).wait() == 0, tail(folder)
    return folder


@pytest.mark.slow
def test_sigterm_ends_the_step_saves_and_the_same_command_goes_on(arguments, uninterrupted, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "run" / "srpo.jsonl"
    run = Started(arguments, folder)
    run.wait_until(lambda: log.exists() and '"step":3' in log.read_text())
    run.terminate()
    assert run.wait() == RESUMABLE
    output = (folder / "stdout.log").read_text()
    assert "SIGTERM: the run ends after this step" in output
    last = max(read_metrics(log))
    assert 3 <= last < STEPS
    assert output.rstrip().endswith(f"was stopped after step {last}, as asked: the same command goes on from there")
    assert checkpoints.read_step(folder / "checkpoints" / checkpoints.LATEST) == last

    assert Started(arguments, folder).wait() == 0, tail(folder)
    assert sorted(read_metrics(folder / "attempt-1" / "srpo.jsonl")) == list(range(last + 1))
    assert sorted(read_metrics(log)) == list(range(last, STEPS + 1))  # validated before it goes on
    assert difference(folder, uninterrupted) < 1e-6


def test_the_best_and_the_last_checkpoint_are_left_and_the_guards_have_seen_the_run(uninterrupted):
    root = uninterrupted / "checkpoints"
    metrics = read_metrics(uninterrupted / "srpo.jsonl")
    accuracy = {step: mean_accuracy(metrics[step]) for step in range(2, STEPS + 1, 2)}
    best = max(accuracy, key=lambda step: (accuracy[step], -step))
    assert {c.step: c.accuracy for c in checkpoints.whole(root)} == {
        step: pytest.approx(accuracy[step]) for step in {best, STEPS}
    }
    assert {path.name for path in root.glob("global_step_*")} == {f"global_step_{best}", f"global_step_{STEPS}"}
    assert checkpoints.read_step(root / checkpoints.BEST) == best
    seen = json.loads((root / f"global_step_{STEPS}" / "srpo_guards.json").read_text())
    assert seen["history"]["response_length/mean"][0] == list(range(1, STEPS + 1))
    assert {f"srpo/guard_{name}" for name in RULES} <= metrics[STEPS].keys()


@contextmanager
def held_in_its_save(folder, step):
    """Whoever opens a pipe to write waits for a reader: the run stays inside this save, however late its killer is."""
    weights = checkpoints.folder_of(folder / "checkpoints", step) / "actor" / "model_world_size_1_rank_0.pt"
    weights.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(weights)
    try:
        yield
    finally:
        weights.unlink()


@pytest.mark.timeout(2400)  # six starts, of half a minute each on an idle machine
def test_killed_at_any_moment(arguments, uninterrupted, tmp_path):
    """Five kills: two while a checkpoint is written, two after one, one at a moment of no meaning."""
    folder, root = tmp_path / "run", tmp_path / "run" / "checkpoints"
    log = folder / "srpo.jsonl"
    # No run gets past the save that holds it, so that each of these stays true until the kill.
    kills = [
        (2, lambda: (root / "global_step_2" / checkpoints.UNFINISHED).exists()),
        (4, lambda: checkpoints.read_step(root / checkpoints.LATEST) == 2),
        (6, lambda: log.exists() and '"step":3' in log.read_text()),
        (6, lambda: (root / "global_step_6" / checkpoints.UNFINISHED).exists()),
        (8, lambda: checkpoints.read_step(root / checkpoints.LATEST) == 6),
    ]
    for held, moment in kills:
        with held_in_its_save(folder, held):
            run = Started(arguments, folder)
            try:
                run.wait_until(moment)
            finally:
                run.end()
    assert Started(arguments, folder).wait() == 0, tail(folder)
    assert difference(folder, uninterrupted) < 1e-6
    assert not [path for path in root.iterdir() if path.name.endswith((checkpoints.REMOVED, ".part", ".tmp"))]


@pytest.mark.slow
def test_a_guard_stops_the_run_with_a_checkpoint(arguments, tmp_path):
    folder = tmp_path / "run"
    overrides = [
        "srpo.guards.reward=stop",
        "reward.custom_reward_function.name=nothing",
        "trainer.total_training_steps=40",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "srpo.budget.hours=[]",
    ]
    assert Started([*arguments, *overrides], folder).wait() == STOPPED
    output = (folder / "stdout.log").read_text()
    assert "srpo_verl: guard reward: since step 1 every response has had the reward 0" in output
    last = max(read_metrics(folder / "srpo.jsonl"))
    assert last == 11  # ten steps show it, and one more writes the checkpoint
    assert checkpoints.read_step(folder / "checkpoints" / checkpoints.LATEST) == last

"""Long runs: stopped from outside, killed, gone on with, with all their logs and the right checkpoints left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch

from recipes.runner import run_environment
from srpo_verl import checkpoints, cpu
from srpo_verl.budget import mean_accuracy
from srpo_verl.console import VARIABLE
from srpo_verl.guards import RULES
from srpo_verl.launch.sessions import end_session
from srpo_verl.stopping import RESUMABLE, STOPPED
from tests.support import REWARD_FILE, read_metrics, tiny_model, tiny_parquet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here"),
]
STEPS = 8
LIMIT = 300


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return [
        *("--config-path", "pkg://srpo_verl.config", "--config-name", "srpo", "platform=cpu"),
        f"actor_rollout_ref.model.path={tiny_model(root / 'model')}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        f"data.train_files={tiny_parquet(root, 16)}",
        f"data.val_files={tiny_parquet(root, 4, 'val')}",
        f"reward.custom_reward_function.path={REWARD_FILE}",
        "data.train_batch_size=4",
        "data.max_prompt_length=64",
        "data.max_response_length=12",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024",
        "actor_rollout_ref.actor.optim.lr=1.0e-3",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=1",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        "srpo.success_threshold=0.12",
        "srpo.distillation.top_k=20",
        "srpo.demonstration.max_prompt_tokens=160",
        "trainer.test_freq=2",
        "trainer.save_freq=2",
        "trainer.max_actor_ckpt_to_keep=1",
        f"trainer.total_training_steps={STEPS}",
    ]


def start(arguments, folder, *overrides):
    """The trainer in a session of its own, with its log and checkpoints in `folder`; and what to remove afterwards."""
    folder.mkdir(exist_ok=True)
    ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {**run_environment(folder / "srpo.jsonl", ray), VARIABLE: "full"}
    for variable in (cpu.PLATFORM_VARIABLE, cpu.ENGINE_VARIABLE):
        environment.pop(variable, None)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments, *overrides]
    command += [f"trainer.default_local_dir={folder}/checkpoints", f"hydra.run.dir={folder}/hydra"]
    with (folder / "stdout.log").open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return process, ray


def finish(process, ray, limit=LIMIT):
    """Exit status, and nothing of the run left."""
    try:
        return process.wait(limit)
    finally:
        end_session(process)
        shutil.rmtree(ray, ignore_errors=True)


def wait_until(condition, process, limit=LIMIT):
    deadline = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, "the run ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def weights(folder, step=STEPS):
    """Student and teacher of a checkpoint."""
    found = {}
    for part in ("actor", "srpo_teacher"):
        for path in sorted((folder / "checkpoints" / f"global_step_{step}" / part).glob("model_world_size_*.pt")):
            state = torch.load(path, weights_only=False)
            found |= {(part, path.name, name): getattr(v, "_local_tensor", v) for name, v in state.items()}
    return found


def compare(one, other):
    assert one.keys() == other.keys()
    assert one
    return max(float((value.float() - other[name].float()).abs().max()) for name, value in one.items())


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert finish(*start(arguments, folder)) == 0, (folder / "stdout.log").read_text()[-3000:]
    return folder


def test_sigterm_ends_the_step_saves_and_the_same_command_goes_on(arguments, uninterrupted, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "run" / "srpo.jsonl"
    process, ray = start(arguments, folder)
    wait_until(lambda: log.exists() and '"step":3' in log.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, ray) == RESUMABLE
    output = (folder / "stdout.log").read_text()
    assert "SIGTERM: the run ends after this step" in output
    last = max(read_metrics(log))
    assert 3 <= last < STEPS
    assert output.rstrip().endswith(f"was stopped after step {last}, as asked: the same command goes on from there")
    assert checkpoints.read_step(folder / "checkpoints" / checkpoints.LATEST) == last

    assert finish(*start(arguments, folder)) == 0, (folder / "stdout.log").read_text()[-3000:]
    assert sorted(read_metrics(folder / "attempt-1" / "srpo.jsonl")) == list(range(last + 1))
    assert sorted(read_metrics(log)) == list(range(last, STEPS + 1))  # validated before it goes on
    assert compare(weights(folder), weights(uninterrupted)) < 1e-6


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


def test_killed_at_any_moment(arguments, uninterrupted, tmp_path):
    """Five kills: two at a step's end, one while a checkpoint is written, two at moments of no meaning."""
    folder, root = tmp_path / "run", tmp_path / "run" / "checkpoints"
    log = folder / "srpo.jsonl"
    moments = [
        lambda: (root / "global_step_2" / checkpoints.UNFINISHED).exists(),
        lambda: checkpoints.read_step(root / checkpoints.LATEST) == 2,
        lambda: log.exists() and '"step":3' in log.read_text(),
        lambda: (root / "global_step_6" / checkpoints.UNFINISHED).exists(),
        lambda: checkpoints.read_step(root / checkpoints.LATEST) == 6,
    ]
    for moment in moments:
        process, ray = start(arguments, folder)
        try:
            wait_until(moment, process)
        finally:
            end_session(process)
            shutil.rmtree(ray, ignore_errors=True)
    assert finish(*start(arguments, folder)) == 0, (folder / "stdout.log").read_text()[-3000:]
    assert compare(weights(folder), weights(uninterrupted)) < 1e-6
    assert not [path for path in root.iterdir() if path.name.endswith((checkpoints.REMOVED, ".part", ".tmp"))]


def test_a_guard_stops_the_run_with_a_checkpoint(arguments, tmp_path):
    folder = tmp_path / "run"
    process, ray = start(
        arguments,
        folder,
        "srpo.guards.reward=stop",
        "reward.custom_reward_function.name=nothing",
        "trainer.total_training_steps=40",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "srpo.budget.hours=[]",
    )
    assert finish(process, ray) == STOPPED
    output = (folder / "stdout.log").read_text()
    assert "srpo_verl: guard reward: since step 1 every response has had the reward 0" in output
    last = max(read_metrics(folder / "srpo.jsonl"))
    assert last == 11  # ten steps show it, and one more writes the checkpoint
    assert checkpoints.read_step(folder / "checkpoints" / checkpoints.LATEST) == last

"""veRL's own trainer and GRPO on the CPU, end to end through `python -m verl.trainer.main_ppo`."""

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from srpo_verl.installation import REGISTRATIONS
from tests.support import REWARD_FILE, run_main_ppo, tiny_model, tiny_parquet

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here")
HERE = Path(__file__).parent
VAL_REWARD = "val-aux/toy/reward/mean@1"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return [
        f"actor_rollout_ref.model.path={tiny_model(root / 'model')}",
        f"data.train_files={tiny_parquet(root, 16)}",
        f"data.val_files={tiny_parquet(root, 4, 'val')}",
        f"reward.custom_reward_function.path={REWARD_FILE}",
        "reward.custom_reward_function.name=compute_score",
    ]


def train(inputs, cwd, *overrides, env=None):
    arguments = [f"--config-path={HERE}", "--config-name=stock_grpo", *inputs, *overrides]
    run = run_main_ppo(arguments, timeout=400, cwd=cwd, env=env)
    assert run.returncode == 0, run.tail()
    return run


def check_training(run, steps):
    assert sorted(run.metrics) == list(range(steps + 1))
    assert VAL_REWARD in run.metrics[0]
    assert VAL_REWARD in run.metrics[steps]
    for step in range(1, steps + 1):
        metrics = run.metrics[step]
        assert metrics["training/rollout_probs_diff_max"] < 1e-6  # rollout and trainer hold the same weights
        assert metrics["actor/grad_norm"] > 0
        assert math.isfinite(metrics["actor/pg_loss"])
        assert metrics["response_length/max"] <= 12
        assert 0 < metrics["critic/score/mean"] < 1
        assert metrics["critic/score/max"] > metrics["critic/score/min"]


@pytest.mark.slow  # tests/e2e runs stock GRPO in the default tier
def test_two_steps_on_one_rank(inputs, tmp_path):
    check_training(train(inputs, tmp_path), steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_two_steps_with_a_reference_policy(inputs, tmp_path, strategy, ranks):
    run = train(
        inputs,
        tmp_path,
        f"actor_rollout_ref.actor.strategy={strategy}",
        f"trainer.n_gpus_per_node={ranks}",
        "actor_rollout_ref.actor.use_kl_loss=true",
    )
    check_training(run, steps=2)
    # The first update is the same whatever the layout: same weights, same rollouts, same gradient.
    assert run.metrics[1]["critic/score/mean"] == pytest.approx(0.1104166, abs=1e-6)
    assert run.metrics[2]["actor/kl_loss"] > 0


def weights(checkpoint, ranks):
    """The saved shards of the actor, rank by rank."""
    shards = []
    for rank in range(ranks):
        path = checkpoint / "actor" / f"model_world_size_{ranks}_rank_{rank}.pt"
        state = torch.load(path, weights_only=False)
        shards.append({name: getattr(tensor, "_local_tensor", tensor) for name, tensor in state.items()})
    return shards


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_a_resumed_run_equals_the_uninterrupted_one(inputs, tmp_path, strategy, ranks):
    overrides = [
        f"actor_rollout_ref.actor.strategy={strategy}",
        f"trainer.n_gpus_per_node={ranks}",
        "trainer.total_training_steps=4",
        "trainer.save_freq=2",
        "trainer.resume_mode=auto",
        "trainer.default_local_dir=checkpoints",
    ]
    whole = train(inputs, tmp_path / "whole", *overrides)
    saved = tmp_path / "whole" / "checkpoints"
    restored = tmp_path / "resumed" / "checkpoints"
    restored.mkdir(parents=True)
    shutil.copytree(saved / "global_step_2", restored / "global_step_2")
    (restored / "latest_checkpointed_iteration.txt").write_text("2")
    resumed = train(inputs, tmp_path / "resumed", *overrides, "trainer.val_before_train=false")

    assert 1 not in resumed.metrics
    for step in (3, 4):
        for key in ("critic/score/mean", "response_length/mean", "actor/grad_norm", "actor/pg_loss"):
            assert resumed.metrics[step][key] == pytest.approx(whole.metrics[step][key], rel=1e-5, abs=1e-7), key
    assert resumed.metrics[4][VAL_REWARD] == whole.metrics[4][VAL_REWARD]
    final, expected = (weights(root / "global_step_4", ranks) for root in (restored, saved))
    moved = weights(saved / "global_step_2", ranks)
    for rank in range(ranks):
        for name, tensor in expected[rank].items():
            torch.testing.assert_close(final[rank][name], tensor, rtol=0, atol=1e-6)
        assert any(not torch.equal(tensor, moved[rank][name]) for name, tensor in expected[rank].items())


def everything_of(run):
    """(What a run logged without clocks and memory, its rollouts, the actor's and the optimizer's shards)."""
    metrics = {
        step: {name: value for name, value in logged.items() if not re.match("timing|perf/|actor/perf/", name)}
        for step, logged in run.metrics.items()
    }
    # veRL draws a prompt's uid at random, and writes the prompts of a step in any order.
    rollouts = {
        file.name: sorted(re.sub(r'"uid": "[0-9a-f-]{36}', '"uid": "', line) for line in file.read_text().splitlines())
        for file in (run.cwd / "rollouts").iterdir()
    }
    actor = run.cwd / "checkpoints" / "global_step_2" / "actor"
    optimizer = [torch.load(file, weights_only=False)["state"] for file in sorted(actor.glob("optim_*.pt"))]
    return metrics, rollouts, weights(run.cwd / "checkpoints" / "global_step_2", 2), optimizer


def flat(value, path=""):
    """Leaves of nested dictionaries and lists by their place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {place: leaf for key, inner in items for place, leaf in flat(inner, f"{path}/{key}").items()}
    return {path: getattr(value, "_local_tensor", value)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_the_plugin_a_stock_run_is_bit_for_bit_what_it_is_without(inputs, tmp_path):
    """Two ranks, a reference, validation, checkpoint. On a machine without a GPU both need the CPU platform, which is
    activated by hand; all else of this package is there in one run and in no process of the other."""
    runs, imported = {}, {}
    for policy in ("none", "auto"):
        log = tmp_path / f"{policy}.txt"
        every_process = {"SRPO_TEST_IMPORTS": str(log), "PYTHONPATH": str(HERE / "every_process")}
        runs[policy] = train(
            inputs,
            tmp_path / policy,
            "actor_rollout_ref.actor.use_kl_loss=true",
            "trainer.n_gpus_per_node=2",
            "trainer.save_freq=2",
            "trainer.default_local_dir=checkpoints",
            "trainer.rollout_data_dir=rollouts",
            env={"VERL_USE_EXTERNAL_PLUGINS": policy, **every_process},
        )
        imported[policy] = set(log.read_text().split())
    adapters = {entry.adapter for entry in REGISTRATIONS}
    assert not any(name.startswith(("srpo_verl.plugin", "srpo_verl.verl_ext")) for name in imported["none"])
    assert {"srpo_verl.plugin", *adapters} <= imported["auto"]

    without, with_plugin = (flat(list(everything_of(runs[policy]))) for policy in ("none", "auto"))
    assert with_plugin.keys() == without.keys()
    differing = [
        place
        for place, value in without.items()
        if not (torch.equal(value, with_plugin[place]) if torch.is_tensor(value) else value == with_plugin[place])
    ]
    assert differing == [], [(place, without[place], with_plugin[place]) for place in differing[:20]]
    # There is something to differ: metrics, rollouts, weights, Adam's two moments.
    assert sum(torch.is_tensor(value) for value in without.values()) > 50
    assert len([place for place in without if place.startswith("/0/2/")]) > 30


@pytest.mark.slow
def test_a_failing_rollout_ends_the_run(inputs, tmp_path):
    directory = tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.lm_head.weight.data[5] = float("nan")
    model.save_pretrained(directory)
    arguments = [f"--config-path={HERE}", "--config-name=stock_grpo", *inputs]
    arguments += [f"actor_rollout_ref.model.path={directory}", "trainer.val_before_train=false"]
    run = run_main_ppo(arguments, timeout=300, cwd=tmp_path / "run")
    assert run.returncode != 0
    assert "the rollout model's logits are not finite" in run.stdout.read_text()
    assert not run.metrics

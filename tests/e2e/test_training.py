"""SRPO through `python -m verl.trainer.main_ppo`: the command, configuration and classes that users run."""

import json
import math
import time
from pathlib import Path

import pytest
import torch

from srpo_verl.guards import RULES
from srpo_verl.run_files import record_path, sample_paths
from tests.support import TINY_SRPO, run_main_ppo, tiny_run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here")

METRICS = [
    "srpo/hours",
    "srpo/nonfinite_steps",
    "srpo/response_compression",
    "srpo/frac_at_length_limit",
    "srpo/accuracy",
    "srpo/frac_false_success",
    *(f"srpo/guard_{name}" for name in RULES),
    "srpo/frac_correct",
    "srpo/frac_sdpo",
    "srpo/frac_grpo",
    "srpo/frac_teacher_available",
    "srpo/frac_all_failed_groups",
    "srpo/frac_mostly_failed_groups",
    "srpo/frac_mostly_correct_groups",
    "srpo/frac_all_correct_groups",
    "srpo/distillation_coefficient",
    "srpo/frac_credit",
    "srpo/frac_shown_sibling",
    "srpo/frac_shown_memory",
    "srpo/frac_shown_reference",
    "srpo/frac_shown_feedback",
    "srpo/frac_shown_nothing",
    "srpo/sdpo_share_mean",
    "srpo/grpo_share_mean",
    "srpo/without_teacher",
    "srpo/sdpo_tokens",
    "srpo/grpo_tokens",
    "srpo/loss",
    "srpo/grpo_loss",
    "srpo/sdpo_loss",
    "srpo/teacher_entropy_mean",
    "srpo/student_teacher_divergence",
    "srpo/weight_mean",
    "srpo/weight_std",
    "srpo/weight_max",
    "srpo/teacher_distance",
    "srpo/reprompt_tokens_mean",
    "srpo/frac_reprompt_truncated",
    "srpo/teacher_forward_tokens",
    "timing_s/srpo_teacher",
]
STOCK = [
    "~hydra.callbacks.srpo",  # it would refuse a trainer that is not the plugin's
    "trainer.v1.trainer_mode=sync",
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.actor.policy_loss.loss_mode=vanilla",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return [
        *tiny_run(tmp_path_factory.mktemp("inputs")),
        "trainer.project_name=test",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.val_before_train=false",
        "trainer.resume_mode=disable",
    ]


def train(inputs, cwd, *overrides, name="srpo", steps=2):
    arguments = ["--config-path", "pkg://srpo_verl.config", "--config-name", name, *inputs, *overrides]
    run = run_main_ppo([*arguments, f"trainer.total_training_steps={steps}"], timeout=400, cwd=cwd)
    assert run.returncode == 0, run.tail()
    return run


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory):
    """Four steps with a checkpoint after the second."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    return train(
        inputs,
        cwd,
        *TINY_SRPO,
        "trainer.save_freq=2",
        f"trainer.default_local_dir={cwd}/checkpoints",
        "trainer.val_before_train=true",
        steps=4,
    )


def test_every_metric_is_logged_and_consistent(uninterrupted):
    assert sorted(uninterrupted.metrics) == [0, 1, 2, 3, 4]
    for step in range(1, 5):
        metrics = uninterrupted.metrics[step]
        assert [name for name in METRICS if name not in metrics] == []
        assert all(math.isfinite(metrics[name]) for name in METRICS)
        assert metrics["training/rollout_probs_diff_max"] < 1e-5  # rollout and trainer hold the same weights
        # Both branches at work, and every row in exactly one of them.
        assert metrics["srpo/frac_sdpo"] > 0
        assert metrics["srpo/frac_sdpo"] + metrics["srpo/frac_grpo"] == pytest.approx(1.0)
        assert metrics["srpo/sdpo_share_mean"] == pytest.approx(metrics["srpo/frac_sdpo"])
        assert metrics["srpo/grpo_share_mean"] == pytest.approx(metrics["srpo/frac_grpo"])
        pass_rates = [metrics[name] for name in METRICS if name.endswith("_groups")]
        assert sum(pass_rates) == pytest.approx(1.0)
        # The sum is taken in fp32.
        summands = metrics["srpo/grpo_loss"] + metrics["srpo/sdpo_loss"]
        assert metrics["srpo/loss"] == pytest.approx(summands, rel=1e-6, abs=1e-8)
        assert metrics["srpo/weight_mean"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["srpo/teacher_forward_tokens"] > metrics["srpo/sdpo_tokens"]
    # The first learning rate of a warm-up is 0; then the teacher follows at a distance.
    distances = [uninterrupted.metrics[step]["srpo/teacher_distance"] for step in range(2, 5)]
    assert all(0 < distance < 0.1 for distance in distances)


def test_a_record_and_token_samples_lie_beside_the_log(uninterrupted):
    log = uninterrupted.cwd / "metrics.jsonl"
    record = json.loads(record_path(log).read_text())
    assert record["config"]["srpo"]["success_threshold"] == 0.12
    assert record["versions"]["verl"] == "0.9.1"
    samples = {step: json.loads(path.read_text()) for step, path in sample_paths(log).items()}
    assert sorted(samples) == [1, 4]  # the first and the last
    for step, sample in samples.items():
        rollouts = [rollout for prompt in sample["prompts"] for rollout in prompt["rollouts"]]
        assert len(rollouts) == 8  # two groups of four
        distilled = [rollout for rollout in rollouts if rollout["sdpo_share"] > 0]
        assert distilled
        for rollout in rollouts:
            assert len(rollout["tokens"]) == len(rollout["advantage"]) == rollout["length"]
            assert (rollout["demonstration"] is not None) == (rollout in distilled) == ("divergence" in rollout)
        for rollout in distilled:
            assert rollout["demonstration"]["text"]
            assert 0 < max(rollout["weight"]) <= uninterrupted.metrics[step]["srpo/weight_max"] * 1.001


def test_the_checkpoint_holds_the_teacher(uninterrupted):
    folder = uninterrupted.cwd / "checkpoints" / "global_step_2"
    read = {
        part: torch.load(folder / part / "model_world_size_1_rank_0.pt", weights_only=False)
        for part in ("actor", "srpo_teacher")
    }
    assert read["actor"].keys() == read["srpo_teacher"].keys()
    for name, average in read["srpo_teacher"].items():
        average, student = (getattr(t, "_local_tensor", t) for t in (average, read["actor"][name]))
        assert average.dtype == torch.float32
        assert not torch.equal(average, student), f"{name}: the teacher is the student"


def test_resuming_equals_not_having_stopped(inputs, uninterrupted, tmp_path):
    resumed = train(
        inputs,
        tmp_path,
        *TINY_SRPO,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={uninterrupted.cwd}/checkpoints/global_step_2",
        "srpo.token_sample.every=0",  # which changes nothing, either
        steps=4,
    )
    assert sample_paths(resumed.cwd / "metrics.jsonl") == {}
    assert sorted(resumed.metrics) == [3, 4]
    assert resumed.metrics[3]["srpo/hours"] > uninterrupted.metrics[2]["srpo/hours"]  # the clock goes on
    exact = ["srpo/frac_correct", "srpo/frac_sdpo", "srpo/sdpo_tokens", "response_length/mean", "critic/rewards/mean"]
    close = ["srpo/loss", "srpo/grpo_loss", "srpo/sdpo_loss", "actor/grad_norm", "srpo/teacher_entropy_mean"]
    close += ["srpo/teacher_distance", "srpo/student_teacher_divergence", "srpo/weight_std", "actor/lr"]
    for step in (3, 4):
        before, after = uninterrupted.metrics[step], resumed.metrics[step]
        # The same rollouts ...
        assert {name: after[name] for name in exact} == {name: before[name] for name in exact}
        # ... and the same update, to fp32 rounding (rows may be summed in another order).
        for name in close:
            assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-7), (step, name)


def test_two_ranks_of_fsdp1_with_the_teacher_on_the_cpu(inputs, tmp_path):
    two_ranks = ["trainer.n_gpus_per_node=2", "actor_rollout_ref.actor.strategy=fsdp"]
    run = train(inputs, tmp_path, *TINY_SRPO, *two_ranks, "srpo.teacher.cpu_offload=true")
    for step in (1, 2):
        assert [name for name in METRICS if name not in run.metrics[step]] == []
        assert run.metrics[step]["srpo/weight_mean"] == pytest.approx(1.0, abs=1e-5)
        assert run.metrics[step]["training/rollout_probs_diff_max"] < 1e-5


KL = [
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.actor.kl_loss_coef=0.5",
    "algorithm.use_kl_in_reward=true",
]
TWO_RANKS = ["trainer.n_gpus_per_node=2"]
FSDP1 = ["actor_rollout_ref.actor.strategy=fsdp"]


def compared_with_stock(inputs, cwd, *overrides):
    """Runs of `grpo` and of stock veRL with the same settings, after comparing them step for step.

    Two optimizer steps per training step, so that ratios differ from 1 and clipping can matter.
    """
    sizes = ["actor_rollout_ref.actor.ppo_mini_batch_size=2", "algorithm.norm_adv_by_std_in_grpo=true", *overrides]
    ours = train(inputs, cwd / "ours", *sizes, name="grpo", steps=3)
    stock = train(inputs, cwd / "stock", *sizes, *STOCK, name="grpo", steps=3)
    assert "srpo/loss" not in stock.metrics[1]
    names = ["critic/rewards/mean", "critic/advantages/max", "critic/advantages/min", "response_length/mean"]
    names += ["actor/pg_loss", "actor/grad_norm", "actor/lr"]
    if TWO_RANKS[0] not in overrides:
        # Over ranks veRL averages the means of each, whatever their numbers of tokens.
        names += ["actor/pg_clipfrac", "actor/ppo_kl"]
    optional = ("actor/entropy", "actor/kl_loss", "actor/reward_kl_penalty")
    names += [name for name in optional if name in stock.metrics[1]]
    for step in (1, 2, 3):
        for name in names:
            expected = stock.metrics[step][name]
            # The same numbers by other operations, and sums over rows in another order. The KL is a mean of
            # differences of log-probs of about -3, each rounded to 2.4e-7: next to 0 that is what is left.
            near_zero = 2.4e-7 if name in ("actor/ppo_kl", "actor/reward_kl_penalty") else 1e-8
            if name == "actor/pg_loss" and KL[-1] in overrides:
                # Such differences are in the rewards: 12 tokens x 2.4e-7 x 0.5 each, over a deviation of about 0.3.
                near_zero = 5e-6
            assert ours.metrics[step][name] == pytest.approx(expected, rel=1e-5, abs=near_zero), (step, name)
    return ours, stock


def test_grpo_equals_stock_verl_step_for_step(inputs, tmp_path):
    _, stock = compared_with_stock(inputs, tmp_path)
    assert "actor/entropy" in stock.metrics[1]
    assert any(abs(stock.metrics[step]["actor/ppo_kl"]) > 1e-9 for step in (2, 3))


@pytest.mark.slow
def test_grpo_on_the_rollout_engine_s_log_probs_equals_stock_verl_step_for_step(inputs, tmp_path):
    """No pass over old log-probs (veRL's bypass mode), so no correction either."""
    correction = "algorithm.rollout_correction"
    _, stock = compared_with_stock(inputs, tmp_path, f"{correction}.bypass_mode=true", f"{correction}.rollout_is=null")
    assert "actor/entropy" not in stock.metrics[1]


LORA = [
    "actor_rollout_ref.model.lora_rank=4",
    "actor_rollout_ref.model.lora.merge=true",
    # Else torch's generator, which draws the adapters, has another seed in every process.
    "actor_rollout_ref.actor.fsdp_config.full_determinism=true",
]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param([], id="fsdp2", marks=pytest.mark.slow),
        pytest.param([*FSDP1, *TWO_RANKS], id="fsdp1-two-ranks", marks=pytest.mark.slow),
        pytest.param([*LORA, *TWO_RANKS], id="lora-two-ranks", marks=pytest.mark.slow),
        pytest.param([*LORA, *FSDP1], id="lora-fsdp1", marks=pytest.mark.slow),
    ],
)
def test_grpo_with_a_kl_equals_stock_verl_step_for_step(inputs, tmp_path, layout):
    """Both KLs: in the loss against a reference, and in the reward."""
    faster = "actor_rollout_ref.actor.optim.lr=1.0e-2"  # away from the reference within these steps
    ours, stock = compared_with_stock(inputs, tmp_path, *KL, "algorithm.kl_ctrl.kl_coef=0.5", faster, *layout)
    assert "srpo/loss" in ours.metrics[1]
    assert stock.metrics[3]["actor/kl_loss"] > 1e-5
    assert abs(stock.metrics[3]["actor/reward_kl_penalty"]) > 1e-4


@pytest.mark.slow
def test_routing_goes_by_the_verifier_whatever_the_kl_takes_from_the_reward(inputs, tmp_path):
    """A KL in the reward that turns every reward negative, on two ranks of FSDP1."""
    faster = "actor_rollout_ref.actor.optim.lr=1.0e-2"
    run = train(
        inputs,
        tmp_path,
        *TINY_SRPO,
        *KL,
        "algorithm.kl_penalty=low_var_kl",  # of one sign
        "algorithm.kl_ctrl.kl_coef=1.0e6",
        faster,
        *FSDP1,
        *TWO_RANKS,
        steps=3,
    )
    last = run.metrics[3]
    assert last["actor/kl_loss"] > 0
    # By what is left of the rewards nothing would be correct, and nothing distilled.
    assert last["critic/score/max"] >= 0.12 > 0 > last["critic/rewards/max"]
    assert last["srpo/frac_correct"] > 0
    assert last["srpo/frac_sdpo"] > 0
    for step in (1, 2, 3):
        assert [name for name in METRICS if name not in run.metrics[step]] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("srpo.weighting.beta=-1", "srpo.weighting.beta=-1: has to be a number"),
        ("srpo.teacher.kind=EMA", "srpo.teacher.kind='EMA'"),
        ("srpo.typo=1", "srpo_verl: srpo.typo=1: no such key"),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum", "actor_rollout_ref.actor.loss_agg_mode"),
    ],
)
def test_a_wrong_value_stops_the_run_before_ray(inputs, tmp_path, override, message):
    started = time.monotonic()
    arguments = ["--config-path", "pkg://srpo_verl.config", "--config-name", "srpo", *inputs, override]
    run = run_main_ppo(arguments, timeout=120, cwd=tmp_path)
    output = run.stdout.read_text(errors="replace")
    assert run.returncode != 0
    assert message in output, output
    assert "Traceback" not in output
    assert "ray init kwargs" not in output  # veRL prints it right before it starts Ray
    assert time.monotonic() - started < 120


def test_the_installed_verl_is_the_published_one():
    """Every file of the installed veRL has the hash its wheel recorded."""
    import base64
    import csv
    import hashlib
    from importlib.metadata import distribution

    package = distribution("verl")
    record = package.read_text("RECORD")
    assert record is not None
    checked = 0
    for name, digest, _ in csv.reader(record.splitlines()):
        if not digest or not name.startswith("verl/"):
            continue
        algorithm, value = digest.split("=", 1)
        content = Path(str(package.locate_file(name))).read_bytes()
        actual = base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest()).rstrip(b"=").decode()
        assert actual == value, name
        checked += 1
    assert checked > 400


def test_metrics_file_is_plain_json(uninterrupted):
    """NaN and Infinity are not JSON; a report written elsewhere would stumble over them."""
    for line in (uninterrupted.cwd / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} in the metrics"))

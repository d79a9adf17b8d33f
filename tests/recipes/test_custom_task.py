"""The code of docs/custom_task.md, as it stands there: data, verifier, configuration, two steps."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from verl.tools import function_tool

from recipes.runner import train
from srpo_verl.config.check import check_run
from srpo_verl.launch.checks import compose_command
from srpo_verl.verl_ext.student_prompts import configured_tools
from tests.recipes.answers import answering_model
from tests.tool_task import tool_file

DOCUMENT = (Path(__file__).parents[2] / "docs" / "custom_task.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """The working directory of a user who has copied the file and run the first command; the second command."""
    (tmp_path / "my_task.py").write_text(blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    first, _, second = blocks("bash")[0].partition("\n")
    data = shlex.split(first)
    assert data[0] == "python"
    subprocess.run([sys.executable, *data[1:]], check=True, timeout=120)
    return shlex.split(second.replace("\\\n", " "))


def test_the_code_is_short():
    assert len(blocks("python")) == 2
    for block, limit in zip(blocks("python"), (40, 15), strict=True):
        assert len([line for line in block.splitlines() if line.strip()]) <= limit


def test_the_data_has_what_the_document_says(task):
    train_rows, test_rows = (pd.read_parquet(f"backwards/{split}.parquet") for split in ("train", "test"))
    assert len(train_rows) == 6
    documented = re.findall(r"^\| `(\w+)` \|", DOCUMENT.split("## Data", 1)[1].split("\n## ", 1)[0], re.MULTILINE)
    assert sorted(train_rows.columns) == sorted(documented)
    questions = [{row[0]["content"] for row in rows["prompt"]} for rows in (train_rows, test_rows)]
    assert not questions[0] & questions[1]


def test_the_command_composes_and_its_verifier_is_the_task_s(task):
    """Through the function with which veRL loads it."""
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = compose_command(task)
    srpo = check_run(config)
    assert srpo.routing == "sample"
    assert srpo.demonstration.environment_feedback
    assert (config.data.train_files, config.data.val_files) == ("backwards/train.parquet", "backwards/test.parquet")
    score = get_custom_reward_fn(config)
    row = pd.read_parquet(config.data.train_files).iloc[0]
    gold = row["reward_model"]["ground_truth"]
    assert gold == "revir"
    right, wrong, none = (
        score(data_source=row["data_source"], solution_str=text, ground_truth=gold, extra_info=row["extra_info"])
        for text in (f"r-i-v-e-r.\nAnswer: {gold}", "Answer: river", "")
    )
    assert (right["score"], right["acc"], right["feedback"]) == (1.0, 1.0, "")
    assert (wrong["score"], none["score"]) == (0.0, 0.0)
    assert wrong["feedback"] != none["feedback"] != ""
    assert right.keys() == wrong.keys() == none.keys()
    assert all(gold not in result["feedback"] for result in (wrong, none))


def test_without_feedback_the_other_methods_take_it(task):
    feedback = "srpo.demonstration.environment_feedback=true"
    for name in ("grpo", "sdpo"):
        command = [name if part == "srpo" else part for part in task if part != feedback]
        check_run(compose_command(command))


def test_with_tools(task, monkeypatch):
    """The overrides of the section on tools, added to the command; tests/e2e/test_tools.py trains with them."""
    # veRL registers a tool once in a process, and other tests register the same one from a file of theirs.
    monkeypatch.setattr(function_tool, "FUNCTION_TOOL_REGISTRY", {})
    (tool_block,) = (block for block in blocks("bash") if "tool_agent" in block)
    tool_file(Path.cwd())
    config = compose_command([*task, *shlex.split(tool_block.replace("\\\n", " "))])
    check_run(config)
    (calculator,) = configured_tools(config)
    assert calculator["function"]["name"] == "calculator"
    assert list(calculator["function"]["parameters"]["properties"]) == ["expression"]


def test_the_calculator(tmp_path):
    source = tool_file(tmp_path).read_text().replace("@function_tool", "")
    names: dict = {}
    exec(source, names)
    assert names["calculator"]("3*7+4*8+2") == "55"
    for hostile in ("", "2**9", "__import__('os')", "1+" * 10_000, "9" * 5, "1*(2)", "³*7", "1+2\n"):
        assert names["calculator"](hostile).startswith("not a sum of products: "), hostile


SIZES = [
    "platform=cpu",
    "actor_rollout_ref.model.enable_gradient_checkpointing=false",
    "data.max_prompt_length=128",
    "data.max_response_length=6",
    "srpo.demonstration.max_prompt_tokens=512",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192",
    "actor_rollout_ref.rollout.val_kwargs.n=2",
    "trainer.total_training_steps=2",
    "trainer.test_freq=2",
    "trainer.save_freq=-1",
    "trainer.val_before_train=false",
    "trainer.logger=[file]",
]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here")
def test_two_steps(task, tmp_path, monkeypatch):
    """With a model that guesses among the words: some rollouts are correct, every failed one has feedback."""
    rows = pd.concat([pd.read_parquet(f"backwards/{split}.parquet") for split in ("train", "test")])
    texts = [prompt[0]["content"] for prompt in rows["prompt"]]
    words = [f"Answer: {row['ground_truth']}" for row in rows["reward_model"]]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    model = f"actor_rollout_ref.model.path={answering_model(texts, words, tmp_path / 'model')}"
    metrics = train([*task, *SIZES, model], tmp_path, steps=2, timeout=400, held_out="").metrics
    for step in (1, 2):
        values = metrics[step]
        assert 0 < values["srpo/frac_correct"] < 1
        assert values["srpo/frac_sdpo"] == pytest.approx(1 - values["srpo/frac_correct"])
        assert values["srpo/sdpo_loss"] > 0
    assert "val-core/backwards/acc/mean@2" in metrics[2]

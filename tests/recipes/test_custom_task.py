"""The code of docs/custom_task.md, as it stands there: data, verifier, configuration, two steps."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from verl.tools import function_tool

from recipes.runner import end_session, run_environment
from srpo_verl.config.check import check_run
from srpo_verl.launch.checks import compose_command
from srpo_verl.verl_ext.student_prompts import configured_tools
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


def test_the_smoke_command_composes(task):
    """With the arguments that a shell gives it."""
    command = smoke_command(Path.cwd())
    assert command[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    srpo = check_run(compose_command(command))
    assert srpo.demonstration.environment_feedback
    # The same task: of what the first command sets, only the place of the model and the sizes differ.
    assert {*task[7:]} - {"data.train_batch_size=6"} < {*command[7:]}


def smoke_block():
    (block,) = (block for block in blocks("bash") if "smoke()" in block)
    return block


def smoke_command(folder):
    """What the last line of the block runs, by a `python` that prints its arguments."""
    stub = folder / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(['python', *sys.argv[1:]]))\n")
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"}
    shown = subprocess.run(["bash", "-c", smoke_block()], env=environment, capture_output=True, text=True, check=True)
    return json.loads(shown.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here")
def test_the_smoke_commands_as_they_stand(task, tmp_path, monkeypatch):
    """Some rollouts are correct, every failed one has feedback."""
    for name in ("VERL_PLATFORM", "VERL_ENGINE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with tempfile.TemporaryDirectory(prefix="ray-") as ray:
        environment = run_environment(tmp_path / "metrics.jsonl", ray)
        run = subprocess.Popen(["bash", "-ec", smoke_block()], env=environment, start_new_session=True)
        try:
            assert run.wait(timeout=400) == 0
        finally:
            end_session(run)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    metrics = {line["step"]: line["data"] for line in lines}
    for step in (1, 2):
        values = metrics[step]
        assert 0 < values["srpo/frac_correct"] < 1
        assert values["srpo/frac_sdpo"] == pytest.approx(1 - values["srpo/frac_correct"])
        assert values["srpo/sdpo_loss"] > 0
    assert "val-core/backwards/acc/mean@2" in metrics[2]

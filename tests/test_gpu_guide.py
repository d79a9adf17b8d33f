"""docs/gpu.md: its training commands compose and pass the checks at the start of a run; its files exist."""

import re
import shlex
from pathlib import Path

import pytest

from srpo_verl.config.check import check_run
from srpo_verl.launch.checks import compose_command

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "gpu.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)


def words(text):
    """A command as bash would split it, without what follows a comment sign."""
    return shlex.split(text.replace("\\\n", " ").replace("$PWD", "/here"), comments=True)


def training_commands():
    """Every `run ...` of the guide with the body of the function that it calls, by its overrides."""
    (body,) = re.findall(r"run\(\) \{\n(.*?)\n\}", GUIDE, re.DOTALL)
    (*command, arguments) = words(body)
    assert arguments == "$@"
    runs = re.findall(r"^(?:\w+=\S+ )?run (\S.*)$", "\n".join(BLOCKS), re.MULTILINE)
    extra = re.findall(r"`('\+ray_kwargs.*?')`", GUIDE)
    return {given: [*command, *words(given)] for given in (*runs, *extra)}


COMMANDS = training_commands()


def test_the_reader_found_the_first_step_the_run_the_machines_and_the_environment():
    assert len(COMMANDS) == 4
    assert any("total_training_steps=1" in given for given in COMMANDS)
    assert any("wandb" in given for given in COMMANDS)
    assert any("nnodes=2" in given for given in COMMANDS)


@pytest.mark.parametrize("given", COMMANDS)
def test_a_training_command_composes_and_passes_the_checks(given):
    config = compose_command(COMMANDS[given])
    check_run(config)
    assert config.data.train_files == "/here/data/chemistry/train.parquet"
    assert config.actor_rollout_ref.rollout.name == "vllm"
    assert config.trainer.n_gpus_per_node == 8


def test_the_check_looks_at_the_run_that_follows():
    (check,) = re.findall(r"^python -m srpo_verl check (.*?[^\\])$", "\n".join(BLOCKS), re.MULTILINE | re.DOTALL)
    option, name, *overrides = words(check)
    run = next(iter(COMMANDS.values()))
    assert (option, name) == ("--config-name", run[run.index("--config-name") + 1])
    assert len(overrides) == 4
    assert set(overrides) <= set(run)


def test_what_the_guide_names_is_there():
    named = set(re.findall(r"constraints/[\w-]+\.txt", GUIDE)) | set(re.findall(r"tests/\w+\.py", GUIDE))
    assert {"constraints/vllm.txt", "constraints/sglang.txt"} <= named
    links = {f"docs/{link.partition('#')[0]}" for link in re.findall(r"\]\((?!http)([^)]+)\)", GUIDE)}
    assert [name for name in named | links if not (ROOT / name).exists()] == []
    modules = re.findall(r"python -m (scripts\.\w+)", GUIDE)
    assert modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module

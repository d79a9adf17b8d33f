"""Every command that a page shows is run by a test, or the page says beside it that, or where and when, it was run."""

import ast
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest

from recipes.mini import make_data, study
from recipes.quickstart import demo
from srpo_verl.__main__ import COMMANDS
from srpo_verl.config.check import check_run
from srpo_verl.launch import __main__ as launch
from srpo_verl.launch.checks import compose_command
from tests.pages import PAGES, ROOT, Command, commands, page_id


@dataclass(frozen=True)
class RunBy:
    """Another test runs it, as it stands or smaller: `file::test`; or a file that the gate goes by: `file: text`."""

    where: str


class Here:
    """A test below runs it."""


class NotRun:
    """No test can or should: the section says "not run", or at which commit it was run."""


def by(name: str) -> RunBy:
    return RunBy(f"tests/{name}")


GATE_INSTALLS = RunBy("Makefile: --editable '.[cpu,dev]'")
WAYS: dict[str, RunBy | Here | NotRun] = {
    # The first pattern that matches counts.
    "pip install .": GATE_INSTALLS,
    "pip install -e '.[[]mini]'": GATE_INSTALLS,
    "make demo": RunBy(".ci/run: recipes.quickstart.demo"),
    "make test": RunBy(".ci/run: make test"),
    "make lint*": RunBy(".ci/run: make lint"),
    "make docs": RunBy(".ci/run: make docs"),
    "make doctor": RunBy("Makefile: -m srpo_verl doctor"),
    "make format": RunBy("Makefile: ruff format ."),
    "make test-slow": RunBy("Makefile: pytest -m slow"),
    "make test test-slow": RunBy("Makefile: pytest -m slow"),
    "make PYTHON=python3.12 test": RunBy("Makefile: PYTHON ?="),
    "make demo-science*": NotRun(),
    "python -m srpo_verl doctor*": by("test_doctor.py::test_a_healthy_environment_exits_with_zero"),
    "python -m srpo_verl data*": by("data/test_official.py::test_official_science"),
    "for name in *python -m srpo_verl data*": by("data/test_official.py::test_official_science"),
    "python -m srpo_verl check*": by("preflight/test_report.py::test_the_command"),
    "python -m srpo_verl report*": by(
        "report/test_page.py::test_the_command_writes_its_files_and_says_what_it_left_out"
    ),
    "python -m srpo_verl export*": by("test_export.py::test_the_command"),
    "python -m srpo_verl stand-in*": by("recipes/test_custom_task.py::test_the_smoke_commands_as_they_stand"),
    "python -m srpo_verl upstream --table": by("test_upstream.py::test_the_page_on_upstream_shows_the_list"),
    "python -m srpo_verl upstream*": by("test_upstream.py::test_the_command_compares_a_wheel"),
    "python -m srpo_verl launch*--dry-run*": Here(),
    "python -m srpo_verl launch*": NotRun(),
    "python -m verl.*": NotRun(),
    "bash recipes/paper/*": by("recipes/test_paper.py::test_a_recipe_trains_two_steps_on_rows_of_its_benchmark"),
    # docs/custom_task.md
    "python my_task.py*": by("recipes/test_custom_task.py::test_the_data_has_what_the_document_says"),
    "smoke*": by("recipes/test_custom_task.py::test_the_smoke_commands_as_they_stand"),
    "actor_rollout_ref.*tool_agent*": by("recipes/test_custom_task.py::test_with_tools"),
    # docs/gpu.md; its training commands compose in tests/test_gpu_guide.py
    "git clone *": NotRun(),
    "python3.12 -m venv *": NotRun(),
    "pip install --no-deps *": NotRun(),
    "pip install '.[[]*": NotRun(),
    "MAX_JOBS=*": NotRun(),
    "docker *": NotRun(),
    "hf download *": NotRun(),
    "run*": NotRun(),
    "wandb login": NotRun(),
    "ray *": NotRun(),
    "RAY_ADDRESS=* run *": NotRun(),
    # recipes
    "python -m recipes.one_step": by("recipes/test_one_step.py::test_the_readme_shows_the_code_and_what_it_prints"),
    "python -m recipes.quickstart.demo*": Here(),
    "pip install gguf*": NotRun(),
    "python -m recipes.science.*": NotRun(),
    "python -m recipes.mini.make_model*": by("recipes/test_mini_tasks.py::test_a_short_warm_up_makes_a_model_once"),
    "python -m recipes.mini.make_data*": Here(),
    "python -m recipes.mini.study --plan": Here(),
    "python -m recipes.mini.study*": by("recipes/test_mini_study.py::test_a_small_study_from_nothing"),
    "python -m recipes.mini.findings": by(
        "recipes/test_mini_study.py::test_the_page_in_the_repository_is_made_from_the_logs_in_it"
    ),
    "python -m recipes.mini.failing*": NotRun(),
    "python -m recipes.mini.on_gpu*": NotRun(),
    # scripts
    "python -m scripts.count_kernels*": by("scripts/test_count_kernels.py::test_limits"),
    "python -m scripts.bench_engine_calls*": by(
        "scripts/test_bench_engine_calls.py::test_the_command_writes_a_row_per_call"
    ),
    "python -m scripts.kernel_errors*": by("scripts/test_kernel_errors.py::test_an_error_is_seen"),
    "python -m scripts.bench_kernels --device cuda": NotRun(),
    "python -m scripts.bench_kernels*": by(
        "scripts/test_bench_kernels.py::test_command_writes_the_csv_and_the_figure"
    ),
    "python -m scripts.bench_step*": by("scripts/test_bench_step.py::test_the_command_runs"),
    "python -m scripts.bench_small_step*": NotRun(),
    "python -m scripts.constraints*": by("scripts/test_constraints.py::test_the_command_says_what_is_missing"),
    "python -m scripts.import_weight*": NotRun(),
    "python -m scripts.endurance*": NotRun(),
    "python -m scripts.gpu_check*": NotRun(),
    "bash scripts/vllm_cpu/install.sh*": NotRun(),
    "build/vllm_cpu/bin/python *": NotRun(),
    "pip download *": NotRun(),
}
REMEDY = "add it to WAYS in tests/test_commands.py, with the test that runs it, or as not run where the page says so"
SAID = re.compile(r"not run|\bcommit [0-9a-f]{7}", re.IGNORECASE)

SHOWN = [command for page in PAGES for command in commands(page) if page.name != "CHANGELOG.md"]


def pattern_of(text: str) -> str | None:
    return next((pattern for pattern in WAYS if fnmatchcase(text, pattern)), None)


def of_way(way: type) -> list[Command]:
    return [command for command in SHOWN if isinstance(WAYS.get(pattern_of(command.text)), way)]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_is_run_by_a_test_or_said_not_to_be(page):
    for command in SHOWN:
        if command.page == page:
            pattern = pattern_of(command.text)
            assert pattern, f"{command}\n{REMEDY}"
            if isinstance(WAYS[pattern], NotRun):
                assert SAID.search(command.section), (
                    f"{command}\nsay beside it: not run, or run at commit ABCDEF0 on what"
                )


def test_the_table_has_no_line_too_many():
    assert set(WAYS) - {pattern_of(command.text) for command in SHOWN} == set()


@pytest.mark.parametrize("where", sorted({way.where for way in WAYS.values() if isinstance(way, RunBy)}))
def test_a_test_that_is_said_to_run_a_command_is_there(where):
    file, _, name = where.partition("::")
    if name:
        functions = [node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")]
        assert name in functions, where
    else:
        file, _, text = where.partition(": ")
        assert text in (ROOT / file).read_text(), where


def test_the_reader_of_commands_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n\n```bash\n# a comment\npython -m a \\\n    --b   # why\nrun() {\n    x\n}\n```\n"
        "not run\n\n## Two\n\nSee `make c`, `python -m d`.\n\n```text\nmake e\n```\n"
    )
    found = [(command.line, command.text, bool(SAID.search(command.section))) for command in commands(page)]
    assert found == [
        (5, "python -m a --b", True),
        (7, "run() { x }", True),
        (15, "make c", False),
        (15, "python -m d", False),
    ]
    assert pattern_of("python -m scripts.unheard_of") is None
    assert len(SHOWN) > 100


def test_every_python_command_is_one_that_there_is():
    """Its module exists, the first word after `python -m srpo_verl` is a command; so with `make`."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in SHOWN:
        words = shlex.split(command.text)
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, command
        if "-m" not in words or (at := words.index("-m") + 1) == len(words):
            continue
        module = words[at]
        if module == "srpo_verl":
            assert words[at + 1] in COMMANDS, command
        assert module not in {name.removesuffix(".__main__") for name, _ in COMMANDS.values()}, (
            f"{command}\nwrite: python -m srpo_verl COMMAND"
        )
        if module.partition(".")[0] in ("srpo_verl", "recipes", "scripts"):
            path = ROOT / module.replace(".", "/")
            assert (
                path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() or path == ROOT / "srpo_verl"
            ), command


# --- those that are run here -----------------------------------------------------------------------------------------


def arguments_of(command: Command) -> list[str]:
    words = shlex.split(command.text)
    return words[4:] if words[2] == "srpo_verl" else words[3:]


def here(pattern: str) -> list[Command]:
    chosen = {pattern_of(command.text): command.text for command in of_way(Here)}
    assert pattern in chosen, pattern
    return [command for command in of_way(Here) if pattern_of(command.text) == pattern]


def test_every_dry_run_finds_nothing_to_refuse(tmp_path, monkeypatch, capsys):
    """Of one benchmark, model and method, besides those that the command names: all compose in tests/recipes."""
    monkeypatch.chdir(tmp_path)
    some = ["--benchmark", "physics", "--model", "qwen3_8b", "--method", "sdpo"]
    shown = {tuple(arguments_of(command)) for command in here("python -m srpo_verl launch*--dry-run*")}
    for arguments in sorted(arguments for arguments in shown if len(arguments) > 1):
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        assert launch.main([*arguments[:cut], *some, *arguments[cut:]]) == 0
        assert ", 0 refused" in capsys.readouterr().out


def test_the_demo_s_command_composes_with_the_arguments_that_are_shown(tmp_path, monkeypatch):
    class Started(Exception):
        """The demo got to its training."""

    def train(command, run, **_):
        check_run(compose_command(command))
        raise Started

    monkeypatch.setattr(demo, "make_starting_model", lambda *_: None)
    monkeypatch.setattr(demo, "make_data", lambda *_: None)
    monkeypatch.setattr(demo, "train", train)
    for command in here("python -m recipes.quickstart.demo*"):
        arguments = arguments_of(command)
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        with pytest.raises(Started):
            demo.main([*arguments[:cut], "--out", str(tmp_path), *arguments[cut:]])


def test_the_plan_and_the_data_of_the_mini_suite(tmp_path, capsys):
    for command in here("python -m recipes.mini.study --plan"):
        assert study.main(arguments_of(command)) == 0
    assert capsys.readouterr().out.startswith("part ")
    (command,) = here("python -m recipes.mini.make_data*")
    make_data.main([str(tmp_path) if word == "DIR" else word for word in arguments_of(command)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.parquet", "train.parquet", "validation.parquet"]


COMPOSED = ("README.md", "docs/configuration.md")
"""Pages whose run command is composed here; those of docs/gpu.md and docs/custom_task.md have tests of their own."""


@pytest.mark.parametrize("name", COMPOSED)
def test_a_run_that_is_shown_composes_and_passes_the_checks(name):
    (command,) = (shown for shown in SHOWN if page_id(shown.page) == name and "verl.trainer.main_ppo" in shown.text)
    check_run(compose_command(shlex.split(command.text)))


def test_no_page_has_a_run_command_that_nothing_checks():
    pages = {page_id(command.page) for command in SHOWN if "verl.trainer.main_ppo" in command.text}
    assert pages == {*COMPOSED, "docs/gpu.md", "docs/custom_task.md"}

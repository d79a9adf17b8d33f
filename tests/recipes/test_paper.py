"""The launchers of recipes/paper: what each composes, and that each trains on rows of its real benchmark."""

import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from recipes.runner import train
from srpo_verl.config.check import check_run
from srpo_verl.data.benchmarks import BENCHMARKS as PUBLISHED
from srpo_verl.launch.cells import BENCHMARKS, MODELS, SETS, command_of
from srpo_verl.launch.checks import compose_command
from srpo_verl.launch.model_sizes import MODELS as FACTS
from tests.config import PAPER
from tests.config import compose as compose_anew
from tests.config.test_yaml import CONFIG, DIFFERENCES, difference, leaf_keys
from tests.data.samples import data_dir
from tests.recipes import answers
from tests.recipes.launchers import RECIPES, launcher, read_launcher

LAUNCHERS = sorted(RECIPES.glob("*.sh"))
METHODS = [path.stem for path in LAUNCHERS]
SHARED = CONFIG / "shared" / "benchmark.yaml"
OVERLAYS = sorted([*CONFIG.glob("base_model/*.yaml"), *CONFIG.glob("benchmark/*.yaml"), SHARED])


compose = cache(compose_anew)
"""Composed configurations are only read here; their interpolations are resolved at each reading."""


# --- launchers -------------------------------------------------------------------------------------------------------


def test_there_is_a_launcher_per_method_and_one_for_the_untrained_model():
    assert set(METHODS) == {*PAPER, "base"}
    assert set(METHODS) == {method for methods, _ in SETS.values() for method in methods}


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_what_is_started_for_a_table_is_what_the_launcher_starts(path):
    settings = ["base_model=qwen3_8b", "benchmark=chemistry"]
    assert sorted(read_launcher(path)) == sorted(command_of(path.stem, settings))


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_a_launcher_executes_what_is_read_from_it(path, tmp_path):
    """bash, with a `python` that prints its arguments, against the reader that everything else here relies on."""
    stub = tmp_path / "python"
    stub.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    extra = ["benchmark=physics", "trainer.logger=[console, file]"]
    shown = subprocess.run(["bash", path, *extra], env=environment, capture_output=True, text=True, timeout=60)
    assert json.loads(shown.stdout) == read_launcher(path, extra)[1:]
    assert os.access(path, os.X_OK)
    assert f"#   bash recipes/paper/{path.name} " in path.read_text()


@pytest.fixture(scope="module")
def composed():
    return {path.stem: compose_command(read_launcher(path)) for path in LAUNCHERS}


def test_the_launchers_differ_in_what_the_paper_names_and_nothing_else(composed):
    """The differences of Table 3 between the named configurations are those between the recipes."""
    for method in PAPER:
        label = {} if method == "srpo" else {"trainer.experiment_name": ("srpo", method)}
        assert difference(composed["srpo"], composed[method]) == DIFFERENCES[method] | label, method
    assert difference(composed["grpo"], composed["base"]) == {
        "trainer.experiment_name": ("grpo", "base"),
        "trainer.val_only": (False, True),
        "trainer.resume_mode": ("auto", "disable"),
    }
    assert composed["base"].trainer.val_before_train


def test_a_launcher_adds_data_names_and_the_budget_to_its_configuration(composed):
    """Table 3 itself is compared in tests/config/test_yaml.py; a recipe changes none of it."""
    for method in PAPER:
        assert set(difference(compose(method), composed[method])) == {
            "data.root",
            "data.benchmark",
            "data.train_files",
            "data.val_files",
            "srpo.budget.stop_at_hours",
            "trainer.base_model",
            "trainer.project_name",
            "trainer.total_epochs",
        }
        assert check_run(composed[method]).budget.stop_at_hours == 10


# --- overlays --------------------------------------------------------------------------------------------------------


def test_the_groups_have_the_paper_s_choices():
    assert {path.stem for path in CONFIG.glob("base_model/*.yaml")} == set(MODELS)
    assert {path.stem for path in CONFIG.glob("benchmark/*.yaml")} == set(BENCHMARKS)
    assert set(BENCHMARKS) == set(PUBLISHED)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_overlay_repeats_nothing(path):
    """Every key of an overlay has another value without it."""
    store = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    keys = sorted(flat_keys({key: value for key, value in store.items() if key != "defaults"}))
    assert len(keys) == len(list(leaf_keys(store)))
    # What the benchmarks share is no choice of its own.
    group, choice = ("benchmark", BENCHMARKS[0]) if path == SHARED else (path.parent.name, path.stem)
    assert keys
    assert set(keys) <= set(difference(compose("srpo"), compose("srpo", f"{group}={choice}")))


def flat_keys(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_an_overlay_leads_to_the_files_that_the_data_command_writes(model, benchmark, monkeypatch):
    monkeypatch.setenv("SRPO_DATA", "/d")
    config = compose("srpo", f"base_model={model}", f"benchmark={benchmark}")
    assert (config.data.train_files, config.data.val_files) == tuple(
        f"/d/{benchmark}/{split}.parquet" for split in ("train", "test")
    )
    # Runs of another benchmark or model never share a folder: veRL would resume one from the other's checkpoint.
    assert config.trainer.default_local_dir == f"outputs/srpo-{benchmark}-{model}/srpo/checkpoints"
    assert config.actor_rollout_ref.model.path in FACTS
    published = PUBLISHED[benchmark]
    header = (CONFIG / "benchmark" / f"{benchmark}.yaml").read_text()
    assert f"{published.rows['train']} training and {published.rows['test']} test questions" in header


def test_the_root_of_the_data_is_the_working_directory_s_data_by_default_and_can_be_overridden(monkeypatch):
    monkeypatch.delenv("SRPO_DATA", raising=False)
    assert compose("grpo", "benchmark=physics").data.val_files == "data/physics/test.parquet"
    assert compose("grpo", "benchmark=physics", "data.root=/x").data.train_files == "/x/physics/train.parquet"


GROUPS = ["base_model", "benchmark", "platform"]


@pytest.mark.parametrize("group", GROUPS)
def test_a_choice_that_does_not_exist_is_an_error(group):
    """An `optional` group would be left out in silence, and the run would take veRL's default data."""
    with pytest.raises(MissingConfigException, match=f"{group}/nothing"):
        compose("srpo", f"{group}=nothing")


@pytest.mark.parametrize("name", PAPER)
def test_every_configuration_has_the_same_groups(name):
    """After the configuration's own values, so that a choice wins over them; the platform last."""
    chosen = OmegaConf.load(CONFIG / f"{name}.yaml").defaults
    assert chosen == ["base", "_self_", *({group: None} for group in GROUPS)]


@pytest.mark.parametrize("override", ["actor_rollout_ref.rollout.name=sglang", "trainer.nnodes=2"])
def test_what_the_readme_calls_one_override(override):
    key, value = override.split("=")
    config = compose_command(read_launcher(launcher("srpo"), [override]))
    check_run(config)
    assert str(OmegaConf.select(config, key)) == value


# --- two steps on real rows ------------------------------------------------------------------------------------------

SIZES = [
    "platform=cpu",
    "actor_rollout_ref.model.enable_gradient_checkpointing=false",
    "data.train_batch_size=4",
    "data.max_prompt_length=1024",
    "data.max_response_length=6",
    "srpo.demonstration.max_prompt_tokens=1536",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192",
    "actor_rollout_ref.rollout.val_kwargs.n=2",
    "trainer.total_training_steps=2",
    "trainer.test_freq=2",
    "trainer.save_freq=-1",
    "trainer.val_before_train=false",
    "trainer.logger=[file]",
]
# Four prompts where Table 3 has 32: one optimizer step per training step, four for GRPO.
MINI_BATCH = {method: 1 if method == "grpo" else 4 for method in PAPER}


def run_recipe(method, benchmark, tmp_path, monkeypatch, *overrides):
    """The launcher itself, as a user starts it; returns the metrics by step."""
    source = data_dir()
    if source is None:
        pytest.skip("the official split files are not at hand; set SRPO_DATA_DIR")
    if torch.cuda.is_available():
        pytest.skip("the CPU platform is not active here")
    rows = answers.short_rows(benchmark, source)
    assert len(rows) == 8
    assert all(answers.is_right(benchmark, row, answers.right_response(row)) for row in rows)
    monkeypatch.setenv("SRPO_DATA", str(answers.write_data(benchmark, rows, tmp_path)))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    settings = [
        f"benchmark={benchmark}",
        *SIZES,
        f"actor_rollout_ref.model.path={answers.guessing_model(rows, tmp_path / 'model')}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={MINI_BATCH.get(method, 4)}",
        *overrides,
    ]
    if method == "grpo" or method == "base":  # a key that has no effect is refused
        settings.remove("srpo.demonstration.max_prompt_tokens=1536")
    command = ["bash", str(launcher(method)), *settings]
    return train(command, tmp_path / "run", steps=2, timeout=400, held_out="").metrics


def assert_trained(method, benchmark, metrics):
    """Two steps, the branches of the method and no other, and a validation of every row."""
    assert sorted(metrics) == [1, 2]
    steps = [metrics[step] for step in (1, 2)]
    sdpo = [values["srpo/frac_sdpo"] for values in steps]
    grpo = [values["srpo/frac_grpo"] for values in steps]
    # The published scorer found right and wrong responses.
    assert all(0 < values["srpo/frac_correct"] < 1 for values in steps)
    if method == "grpo":
        assert sdpo == [0, 0]
    else:
        assert max(sdpo) > 0
        assert any(values["srpo/sdpo_loss"] > 0 for values in steps)
    if method in ("sdpo", "sdpo_correct_only", "sdpo_failed_only"):
        assert grpo == [0, 0]
    else:
        assert min(grpo) > 0
    if method in ("srpo", "srpo_no_dw"):
        assert [one + other for one, other in zip(sdpo, grpo, strict=True)] == pytest.approx([1, 1])
    for values in steps:
        assert math.isfinite(values["srpo/loss"])
        assert values["training/rollout_probs_diff_max"] < 1e-4  # rollout and trainer hold the same weights
        if values["srpo/frac_sdpo"] > 0:
            flat_weights = method != "srpo"
            assert (values["srpo/weight_std"] < 1e-6) == flat_weights
    source = PUBLISHED[benchmark].data_source
    assert 0 <= metrics[2][f"val-core/{source}/acc/mean@2"] <= 1


# The gate runs this one; the slow tier the rest, so that each method and each benchmark has its turn.
FAST = [("srpo", "tooluse")]
SLOW = [
    ("srpo", "chemistry"),
    ("grpo", "physics"),
    ("sdpo", "biology"),
    ("srpo_no_dw", "materials"),
    ("advantage_mix", "tooluse"),
    ("sdpo_correct_only", "chemistry"),
    ("sdpo_failed_only", "physics"),
]


def test_the_runs_cover_every_method_and_every_benchmark():
    assert {method for method, _ in SLOW} == set(PAPER)
    assert {benchmark for _, benchmark in SLOW} == set(BENCHMARKS)


@pytest.mark.parametrize(
    ("method", "benchmark"), [*FAST, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW)]
)
def test_a_recipe_trains_two_steps_on_rows_of_its_benchmark(method, benchmark, tmp_path, monkeypatch):
    assert_trained(method, benchmark, run_recipe(method, benchmark, tmp_path, monkeypatch))


@pytest.mark.slow
def test_the_untrained_model_is_validated_and_not_trained(tmp_path, monkeypatch):
    metrics = run_recipe("base", "chemistry", tmp_path, monkeypatch, "trainer.val_before_train=true")
    assert list(metrics) == [0]
    assert 0 < metrics[0]["val-core/sciknoweval/chemistry/acc/mean@2"] < 1

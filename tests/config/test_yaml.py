"""The YAML files: comments, documentation, and what the named configurations differ in (Table 3)."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from srpo_verl.algos.routing import ROUTINGS
from srpo_verl.config.check import check_run
from srpo_verl.config.schema import default_values
from srpo_verl.config.values import flatten
from srpo_verl.data.benchmarks import BENCHMARKS
from tests.config import NAMES, compose

CONFIG = Path(str(files("srpo_verl.config")))
YAMLS = sorted(CONFIG.rglob("*.yaml"))
DOCUMENTATION = [Path(__file__).parents[2] / "docs" / name for name in ("configuration.md", "endurance.md")]

KEY = re.compile(r"^( *)([A-Za-z_]\w*):(?: +(\S.*))?$")


def leaf_lines(text):
    """(line number, key, whether a comment stands directly above) of every leaf key; Hydra's own list is no key."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        found = KEY.match(line)
        if not found or found[2] == "defaults":
            continue
        following = next((later for later in lines[number + 1 :] if later.strip() and later.strip()[0] != "#"), "")
        is_group = found[3] is None and len(following) - len(following.lstrip()) > len(found[1])
        if not is_group:
            yield number, found[2], number > 0 and lines[number - 1].strip().startswith("# ")


def leaf_keys(node):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaf_keys(value)
        elif key != "defaults":
            yield key


def test_there_are_the_named_configurations_the_platforms_and_the_paper_s_choices():
    assert {path.relative_to(CONFIG).as_posix() for path in YAMLS} == {
        "base.yaml",
        "platform/cpu.yaml",
        "platform/gpu.yaml",
        *(f"{name}.yaml" for name in NAMES),
        *(f"base_model/{name}.yaml" for name in ("qwen3_4b", "qwen3_8b")),
        "shared/benchmark.yaml",
        *(f"benchmark/{name}.yaml" for name in BENCHMARKS),
    }


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.relative_to(CONFIG).as_posix())
def test_every_key_has_a_comment_directly_above(path):
    text = path.read_text()
    found = list(leaf_lines(text))
    # The checker saw what a YAML parser sees: a line it cannot read is not a line without a comment.
    assert [key for _, key, _ in found] == list(leaf_keys(yaml.safe_load(text) or {}))
    assert [f"{path.name}:{number + 1} {key}" for number, key, commented in found if not commented] == []


def test_the_comment_checker_can_fail():
    text = "a:\n\n  # good\n  b: 1\n  c: 2\n\n  # far\n\n  d: 3\n"
    assert [(key, commented) for _, key, commented in leaf_lines(text)] == [("b", True), ("c", False), ("d", False)]


def spellings(value):
    """How a default may be written in the documentation."""
    if value is None or isinstance(value, bool):
        return {yaml.safe_dump(value).split("\n")[0]}
    return {str(value), f"{value:g}"} if isinstance(value, int | float) else {str(value)}


def documents(line, key, value):
    """Whether a line names the key in backticks and its default as the next word."""
    _, tick, rest = line.partition(f"`{key}`")
    if isinstance(value, list):
        return bool(tick) and rest.lstrip(" |").startswith(
            f"`{yaml.safe_dump(value, default_flow_style=True).strip()}`"
        )
    words = [word.strip(".") for word in re.split(r"[^\w.+-]+", rest) if word.strip(".")]
    return bool(tick) and bool(words) and words[0] in spellings(value)


@pytest.mark.parametrize(("key", "value"), flatten(default_values(), "srpo.").items())
def test_every_key_is_documented_with_its_default(key, value):
    lines = [line for page in DOCUMENTATION for line in page.read_text().splitlines() if f"`{key}`" in line]
    assert lines, f"{key} is in none of the pages"
    assert any(documents(line, key, value) for line in lines), f"{key}: no line gives the default {value}: {lines}"


def test_the_comment_above_routing_names_every_routing():
    comment = (CONFIG / "base.yaml").read_text().split("  routing: sample")[0].rsplit("srpo:", 1)[1]
    assert [name for name in (*ROUTINGS, "module:function") if not re.search(rf"\b{name}\b", comment)] == []


def test_the_documentation_checker_can_fail():
    assert documents("| `srpo.a` | `0.5` | x", "srpo.a", 0.5)
    assert documents("`srpo.a` (1): x", "srpo.a", 1.0)
    assert documents("`srpo.a` | false |", "srpo.a", False)
    assert not documents("| `srpo.a` | `0.55` | x", "srpo.a", 0.5)
    assert not documents("| `srpo.a` | `false` | `true`, `false` |", "srpo.a", True)
    assert not documents("| `0.5` | `srpo.a` |", "srpo.a", 0.5)
    assert not documents("| `srpo.ab` | `0.5` |", "srpo.a", 0.5)
    assert documents("| `srpo.a` | `[1, 5]` | x", "srpo.a", [1, 5])
    assert not documents("| `srpo.a` | `[1, 5, 10]` | x", "srpo.a", [1, 5])
    assert documents("| `srpo.a` | `[one]` | x", "srpo.a", ["one"])


# --- composition on stock veRL ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed():
    platforms = {"none": [], "cpu": ["platform=cpu"]}
    configs = {
        (name, platform): compose(name, *override) for name in NAMES for platform, override in platforms.items()
    }
    return configs | {("srpo", "gpu"): compose("srpo", "platform=gpu")}


def flat(node, prefix=""):
    result = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def difference(one, other):
    """{key: (value in one, value in other)} over leaf keys; interpolations are compared as written."""
    one, other = (flat(OmegaConf.to_container(config, resolve=False)) for config in (one, other))
    keys = sorted(one.keys() | other.keys())
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


@pytest.mark.parametrize("platform", ["none", "cpu"])
@pytest.mark.parametrize("name", NAMES)
def test_every_named_configuration_composes_and_passes_the_check(composed, name, platform):
    srpo = check_run(composed[name, platform])
    assert srpo.uses_teacher == (name != "grpo")
    # What the user named is what will run.
    assert composed[name, platform].trainer.experiment_name == name


ROUTING, BETA = "srpo.routing", "srpo.weighting.beta"
LR, MINI_BATCH = "actor_rollout_ref.actor.optim.lr", "actor_rollout_ref.actor.ppo_mini_batch_size"
SDPO = {BETA: (1.0, 0.0), LR: (5e-6, 1e-5)}  # Table 3: no beta, a learning rate of its own
# Against srpo, besides trainer.experiment_name.
DIFFERENCES = {
    "srpo": {},
    "sdpo": {ROUTING: ("sample", "all"), **SDPO},
    "grpo": {ROUTING: ("sample", "none"), LR: (5e-6, 1e-6), MINI_BATCH: (32, 8)},
    "srpo_no_dw": {BETA: (1.0, 0.0)},
    "advantage_mix": {ROUTING: ("sample", "advantage_mix"), BETA: (1.0, 0.0)},
    "sdpo_correct_only": {ROUTING: ("sample", "correct_only"), **SDPO},
    "sdpo_failed_only": {ROUTING: ("sample", "failed_only"), **SDPO},
    "srpo_handover": {ROUTING: ("sample", "handover")},
    "sc_sdpo": {ROUTING: ("sample", "all"), **SDPO, "srpo.weighting.pass_rate": (False, True)},
    "opsd": {
        ROUTING: ("sample", "all"),
        **SDPO,
        "srpo.demonstration.sources": (["sibling"], ["reference"]),
        "srpo.demonstration.reference_column": (None, "reward_model.ground_truth"),
    },
    "rlsd": {ROUTING: ("sample", "none"), "srpo.credit": ("none", "teacher_ratio")},
    "srpo_memory": {"srpo.demonstration.sources": (["sibling"], ["sibling", "memory"])},
    "srpo_anneal": {"srpo.schedule.kind": ("constant", "linear")},
}


def test_the_configurations_differ_in_what_the_paper_names_and_nothing_else(composed):
    assert DIFFERENCES.keys() == set(NAMES)
    found = {name: difference(composed["srpo", "none"], composed[name, "none"]) for name in NAMES}
    rows = sorted({key for values in found.values() for key in values})
    print("\n" + " | ".join(["key (srpo's value if not given)", *NAMES]))
    for key in rows:
        cells = [str(found[name][key][1]) if key in found[name] else "" for name in NAMES]
        print(" | ".join([key, *cells]))
    for name in NAMES:
        label = {} if name == "srpo" else {"trainer.experiment_name": ("srpo", name)}
        assert found[name] == DIFFERENCES[name] | label, name


@pytest.mark.parametrize("platform", ["none", "cpu"])
def test_a_platform_changes_no_hyperparameter(composed, platform):
    """The differences between configurations are the same on every platform."""
    for name in NAMES:
        assert difference(composed["srpo", platform], composed[name, platform]) == difference(
            composed["srpo", "none"], composed[name, "none"]
        )


def test_the_cpu_platform_leaves_the_algorithm_alone(composed):
    changed = difference(composed["srpo", "none"], composed["srpo", "cpu"])
    assert changed["trainer.device"] == ("cuda", "cpu")
    assert [key for key in changed if key.startswith(("srpo", "algorithm"))] == []
    assert [key for key in changed if ".optim" in key or "batch" in key or "clip" in key or "length" in key] == []


def test_the_gpu_platform_changes_nothing(composed):
    assert difference(composed["srpo", "none"], composed["srpo", "gpu"]) == {}


# Rows of the paper's Table 3, by the veRL key that carries each; column SRPO.
TABLE_3 = {
    "actor_rollout_ref.model.path": "Qwen/Qwen3-8B",
    "data.apply_chat_template_kwargs.enable_thinking": False,
    "data.max_prompt_length": 2048,
    "data.max_response_length": 8192,
    "data.train_batch_size": 32,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 32,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.val_kwargs.n": 16,
    "actor_rollout_ref.rollout.val_kwargs.temperature": 0.6,
    "actor_rollout_ref.rollout.val_kwargs.top_p": 0.95,
    "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
    "actor_rollout_ref.actor.clip_ratio_low": 0.2,
    "actor_rollout_ref.actor.clip_ratio_high": 0.28,
    "actor_rollout_ref.actor.clip_ratio_c": 3.0,
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.entropy_coeff": 0,
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "algorithm.use_kl_in_reward": False,
    "algorithm.norm_adv_by_std_in_grpo": False,
    "algorithm.rollout_correction.rollout_is": "token",
    "algorithm.rollout_correction.rollout_is_threshold": 2.0,
    "actor_rollout_ref.rollout.calculate_log_probs": True,
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.actor.optim.lr": 5e-6,
    "actor_rollout_ref.actor.optim.lr_warmup_steps": 10,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
    "actor_rollout_ref.actor.optim.weight_decay": 0.01,
    "actor_rollout_ref.actor.optim.clip_grad": 1.0,
    "actor_rollout_ref.actor.optim.optimizer": "AdamW",
}


@pytest.mark.parametrize(("key", "value"), TABLE_3.items())
def test_the_values_of_table_3(composed, key, value):
    assert OmegaConf.select(composed["srpo", "none"], key, default="absent") == value


def test_the_default_reward_function_is_the_package_s_own(composed):
    from verl.trainer.ppo.reward import get_custom_reward_fn

    from srpo_verl.rewards import compute_score

    function = get_custom_reward_fn(composed["srpo", "none"])
    row = {"data_source": "math", "solution_str": "\\boxed{4}", "ground_truth": "4"}
    assert function(**row) == compute_score(**row)

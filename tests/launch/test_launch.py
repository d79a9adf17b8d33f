"""The launcher of the paper's runs: the matrix, the checks before a run, and what is run, skipped and gone on with."""

import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from srpo_verl.config.schema import parse
from srpo_verl.errors import ConfigError
from srpo_verl.launch import __main__ as launch
from srpo_verl.launch import cells, runs
from srpo_verl.launch.cells import BENCHMARKS, SETS, Cell, command_of, select
from srpo_verl.launch.checks import DoesNotFit, check, compose_command
from srpo_verl.launch.gpu_memory import FIXED_GIB, engine_needs, estimate
from srpo_verl.launch.model_sizes import MODELS, find_sizes
from srpo_verl.report.loader import load_runs

REFERENCE = Path(__file__).parents[2] / "docs" / "sizes.md"
GIB = 2**30


def command(method, *overrides):
    return command_of(method, ["base_model=qwen3_8b", "benchmark=chemistry", *overrides])


# --- the matrix ------------------------------------------------------------------------------------------------------

BOTH, LARGE = ("qwen3_8b", "qwen3_4b"), ("qwen3_8b",)
# Rows of the tables and curves of the figures, by hand; every one of them on five benchmarks.
EXPECTED = {
    "table 1": [(method, model) for model in BOTH for method in ("base", "grpo", "sdpo", "srpo")],
    "table 2": [(method, "qwen3_8b") for method in ("srpo", "srpo_no_dw", "advantage_mix")],
    "figure 1": [(method, "qwen3_8b") for method in ("sdpo", "sdpo_correct_only", "sdpo_failed_only")],
    "figure 3": [(method, model) for model in BOTH for method in ("grpo", "sdpo", "srpo")],
    "figure 4": [(method, "qwen3_8b") for method in ("grpo", "sdpo", "srpo")],
    "figure 5": [("srpo", "qwen3_8b")],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_cell_once(name):
    assert EXPECTED.keys() == SETS.keys()
    counted = Counter(select([name]))
    assert counted == Counter(
        Cell(method, model, benchmark, 42) for method, model in EXPECTED[name] for benchmark in BENCHMARKS
    )


def test_a_run_that_several_tables_and_figures_need_is_one_cell():
    everything = select(SETS)
    assert len(everything) == len(set(everything))
    # Table 1 has 40; Table 2 adds two methods on one model, Figure 1 two; Figures 3 to 5 draw Table 1's runs.
    assert len(everything) == 40 + 10 + 10
    assert set(select(["figure 3", "figure 4", "figure 5"])) < set(select(["table 1"]))
    assert len({cell.name for cell in select(SETS, seeds=3)}) == 180


def test_filters_and_seeds():
    chosen = select(["table 1"], methods=["srpo", "grpo"], models=["qwen3_4b"], benchmarks=["physics"], seeds=2)
    assert [cell.name for cell in chosen] == [
        "grpo-qwen3_4b-physics-seed42",
        "srpo-qwen3_4b-physics-seed42",
        "grpo-qwen3_4b-physics-seed43",
        "srpo-qwen3_4b-physics-seed43",
    ]
    assert select(["table 2"], methods=["grpo"]) == []


def test_the_first_seed_is_that_of_the_configurations():
    config = compose_command(command("srpo"))
    assert config.data.seed == config.actor_rollout_ref.rollout.seed == cells.FIRST_SEED


# --- facts about the models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_facts_are_those_of_a_model_of_these_sizes(name):
    """Parameters counted on a model that transformers builds without memory."""
    facts = MODELS[name]
    config = Qwen3Config(
        vocab_size=facts.vocab,
        hidden_size=facts.hidden,
        intermediate_size=facts.intermediate,
        num_hidden_layers=facts.layers,
        num_attention_heads=facts.heads,
        num_key_value_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        tie_word_embeddings=facts.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == facts.parameters
    assert sum(p.numel() for p in model.model.layers[0].parameters()) == facts.layer_parameters


def test_a_local_copy_of_a_model_is_recognised_by_its_name():
    assert find_sizes("/models/Qwen3-4B/") is MODELS["Qwen/Qwen3-4B"]
    assert find_sizes("/models/Llama-3") is None
    assert find_sizes("/models/my-Qwen3-4B") is None


# --- the estimate, against numbers worked out by hand ----------------------------------------------------------------


def phases(*overrides, method="srpo", gib=80.0):
    config = compose_command(command(method, *overrides))
    found = estimate(config, parse(config.srpo), find_sizes(config.actor_rollout_ref.model.path), gib)
    return {phase.name: phase for phase in found}


def test_the_memory_of_the_8b_model_on_eight_gpus():
    found = phases()
    # 8,190,735,360 parameters x 4 bytes / 8 GPUs / 2^30
    shard = pytest.approx(3.814, abs=1e-3)
    update = found["update"].parts
    assert update["student"] == update["gradients"] == update["teacher"] == shard
    assert update["adam"] == pytest.approx(7.628, abs=1e-3)
    # Embeddings and head: 2 x 151,936 x 4,096 = 1,244,659,712 parameters, in bf16 and their gradient in fp32; two
    # layers of (8,190,735,360 - 1,244,659,712 - 4,096) / 36 = 192,946,432 in bf16: 7,467,958,272 + 771,785,728 bytes.
    assert update["gathered"] == pytest.approx((7_467_958_272 + 771_785_728) / GIB)
    # 20,480 tokens x 4,096 x 36 layers x 2 bytes
    assert update["checkpoints"] == pytest.approx(5.625)
    # Per token 10 x 4,096 + 4 x 40 x 128 + 4 x 12,288 = 110,592 numbers of 2 bytes
    assert update["layer"] == pytest.approx(20_480 * 221_184 / GIB)
    # 20,480 x 151,936 numbers of 2 bytes
    assert update["logits"] == pytest.approx(5.796, abs=1e-3)
    assert found["update"].total == pytest.approx(sum(update.values()))
    rollout = found["rollout"].parts
    assert rollout["engine"] == pytest.approx(48.0)
    assert "gradients" not in rollout
    # A bucket of 2 GiB and the embeddings in fp32: 151,936 x 4,096 x 4 bytes
    assert rollout["weight sync"] == pytest.approx(2 + 2_489_319_424 / GIB)
    assert found["rollout"].total == pytest.approx(3 * 3.814 + 3.814 + 48 + 4.318 + FIXED_GIB, abs=2e-3)
    # 10,240 + 8,192 tokens are less than the budget of 20,480, which the pass may fill.
    assert found["teacher"].parts["logits"] == pytest.approx(5.796, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "phase", "part", "factor"),
    [
        (["trainer.n_gpus_per_node=4"], "update", "student", 2),
        (["trainer.nnodes=2"], "update", "adam", 0.5),
        (["actor_rollout_ref.actor.fsdp_config.fsdp_size=2"], "update", "gradients", 4),
        (["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=10240"], "update", "logits", 0.5),
        (["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=5000"], "update", "logits", 0.5),
        (["actor_rollout_ref.model.enable_gradient_checkpointing=false"], "update", "layer", 36),
        (["actor_rollout_ref.actor.fsdp_config.model_dtype=bf16"], "update", "adam", 0.5),
        (["actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"], "rollout", "adam", 0),
        (["actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"], "update", "adam", 1),
        (["actor_rollout_ref.actor.fsdp_config.param_offload=true"], "rollout", "student", 0),
        (["srpo.teacher.cpu_offload=true"], "update", "teacher", 0),
        (["srpo.teacher.cpu_offload=true"], "teacher", "teacher", 1),
        (["actor_rollout_ref.actor.fsdp_config.param_offload=true"], "update", "teacher", 0),
        (["srpo.teacher.kind=live"], "teacher", "teacher", 0),
        (["actor_rollout_ref.rollout.gpu_memory_utilization=0.3"], "rollout", "engine", 0.5),
    ],
)
def test_what_changes_the_estimate(overrides, phase, part, factor):
    assert phases(*overrides)[phase].parts[part] == pytest.approx(factor * phases()[phase].parts[part])


def test_grpo_has_no_teacher():
    found = phases(method="grpo")
    assert "teacher" not in found
    assert found["update"].parts["teacher"] == 0
    assert found["update"].total == pytest.approx(phases()["update"].total - phases()["update"].parts["teacher"])


def test_a_kl_s_reference_passes_through_the_gpu_and_does_not_stay():
    """veRL fetches a forward-only engine's weights unit by unit; with LoRA the base is the reference."""
    key, in_reward = "actor_rollout_ref.actor.use_kl_loss=true", "algorithm.use_kl_in_reward=true"
    found, without = phases(key), phases()
    assert {name: phase for name, phase in found.items() if name != "reference"} == without
    reference = found["reference"].parts
    assert reference == {**without["teacher"].parts, "teacher": without["update"].parts["teacher"]}
    assert "reference" not in phases(key, "actor_rollout_ref.model.lora_rank=8")
    longer = phases(in_reward, "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=40960")["reference"].parts
    assert longer["logits"] == pytest.approx(2 * reference["logits"])


def test_what_a_rollout_engine_needs_at_least():
    config = compose_command(command("srpo", "base_model=qwen3_4b"))
    # 4,022,468,096 weights of 2 bytes; 10,240 tokens x 36 layers x 8 heads x 128 x 2 (keys, values) x 2 bytes
    expected = (8_044_936_192 + 10_240 * 147_456) / GIB
    assert engine_needs(config, MODELS["Qwen/Qwen3-4B"]) == pytest.approx(expected)


# --- checks before a run ---------------------------------------------------------------------------------------------


def refused(error, match, *overrides, method="srpo", gib=launch.H100_GIB):
    with pytest.raises(error, match=match):
        check(command(method, *overrides), gib)


def test_what_does_not_fit_is_refused():
    longer, utilization = "data.max_response_length=31000", "actor_rollout_ref.rollout.gpu_memory_utilization"
    refused(DoesNotFit, r"max_prompt_tokens=10240 .* 35240 tokens.*32768", "data.max_response_length=25000")
    refused(DoesNotFit, r"data\.max_prompt_length=2048 .* 33048 tokens", longer, method="grpo")
    refused(ConfigError, "40960 positions", longer)
    refused(DoesNotFit, r"'rollout' \(student 7\.6, .*When memory is short", "trainer.n_gpus_per_node=4")
    refused(DoesNotFit, r"'rollout' .* and .*'update' ", "trainer.n_gpus_per_node=2")
    refused(DoesNotFit, "phase 'rollout'", f"{utilization}=0.8")
    refused(DoesNotFit, "raise it or", f"{utilization}=0.2")
    refused(DoesNotFit, "phase", gib=40)


def test_what_veRL_and_the_plugin_refuse_is_refused_here():
    refused(ConfigError, r"srpo\.weighting\.beta=-1", "srpo.weighting.beta=-1")
    refused(AssertionError, "temperature", "actor_rollout_ref.rollout.temperature=0")


def test_an_unknown_model_is_said_to_be_unknown():
    assert "not checked" in check(command("srpo", "actor_rollout_ref.model.path=/models/other"), 1.0).summary


def documented_commands():
    """The commands of docs/sizes.md under 'When memory is short'."""
    section = REFERENCE.read_text().split("## When memory is short", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^python -m srpo_verl launch (.+)$", section.replace(" \\\n", " "), re.MULTILINE)


def test_the_documented_remedies_fit_and_are_needed(capsys):
    commands = [command.split() for command in documented_commands()]
    assert len(commands) == 2
    for command in commands:
        cut = command.index("--")
        chosen = [*command[:cut], "--method", "srpo", "--benchmark", "physics"]
        assert launch.main([*chosen, "--", *command[cut + 1 :]]) == 0
        assert ", 0 refused" in capsys.readouterr().out
        hardware = [override for override in command[cut + 1 :] if override.startswith("trainer.")]
        assert launch.main([*chosen, "--model", "qwen3_8b", "--", *hardware]) == 1
        assert "DoesNotFit" in capsys.readouterr().out


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_a_table_and_writes_the_commands(capsys, tmp_path, monkeypatch):
    """From any folder; nothing is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "run", lambda *_: pytest.fail("started"))
    arguments = ["--figure", "5", "--dry-run", "--seeds", "2", "--out", "runs", "--data", "/d"]
    assert launch.main([*arguments, "--", "actor_rollout_ref.rollout.name=sglang"]) == 0
    *rows, where, count = capsys.readouterr().out.splitlines()
    names = [cell.name for cell in select(["figure 5"], seeds=2)]
    assert [row.split()[:2] for row in rows if row.startswith("srpo-")] == [[name, "ok"] for name in names]
    assert where == f"commands: {tmp_path}/runs/commands.sh"
    assert count == "10 runs, 0 refused"
    for line, name in zip(Path("runs/commands.sh").read_text().splitlines(), names, strict=True):
        assert line.startswith(
            "python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name srpo "
        )
        assert line.endswith(" actor_rollout_ref.rollout.name=sglang")
        assert f" trainer.default_local_dir={tmp_path}/runs/{name}/checkpoints " in line
        assert f" data.seed={name[-2:]} actor_rollout_ref.rollout.seed={name[-2:]} " in line
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["commands.sh"]


def test_a_refused_cell_is_named_and_nothing_is_started(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "run", lambda *_: pytest.fail("started"))
    arguments = ["--table", "1", "--model", "qwen3_8b", "--benchmark", "physics", "--out", str(tmp_path)]
    assert launch.main([*arguments, "--", "trainer.n_gpus_per_node=5"]) == 1
    out = capsys.readouterr().out
    assert out.rstrip().splitlines()[-3:] == [
        "4 runs, 2 refused",
        "  sdpo-qwen3_8b-physics-seed42",
        "  srpo-qwen3_8b-physics-seed42",
    ]
    assert re.search(r"srpo-qwen3_8b-physics-seed42 +REFUSED +DoesNotFit: of 79 GiB per GPU", out)


def test_without_data_nothing_is_started(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "run", lambda *_: pytest.fail("started"))
    arguments = ["--figure", "5", "--benchmark", "physics", "--out", str(tmp_path), "--data", str(tmp_path)]
    assert launch.main(arguments) == 1
    assert f"python -m srpo_verl data physics --source DIR --out {tmp_path}/physics" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["--table", "3"], ["--table", "1", "--seeds", "0"], ["--table", "2", "--method", "grpo"]],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        launch.main(arguments)
    assert raised.value.code == 2


# --- running ---------------------------------------------------------------------------------------------------------

RUN = """
import json, os, sys
from pathlib import Path
folder = Path(sys.argv[1])
calls = folder / "calls.jsonl"
before = len(calls.read_text().splitlines()) if calls.exists() else 0
with calls.open("a") as stream:
    print(json.dumps(sys.argv[2:]), file=stream)
if before < int((folder / "fails").read_text()):
    print("the reason")
    if (folder / "waits").exists():
        import time
        (folder / "runs").touch()
        while not (folder / "checkpoints" / "srpo_stop").exists():
            time.sleep(0.01)
        sys.exit(75)
    if (folder / "saves").exists():
        (folder / "checkpoints").mkdir(exist_ok=True)
        step = min(20 * (before + 1), 40)
        (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))
    sys.exit(75 if (folder / "resumable").exists() else 3)
"""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Two cells whose command is a script that fails as often as its folder says."""
    items = launch.plan(select(["figure 5"], benchmarks=["physics", "biology"]), tmp_path, Path("/d"), ["x=1"])
    for item in items:
        item.folder.mkdir()
        (item.folder / "fails").write_text("0")
    monkeypatch.setattr(
        launch.Planned,
        "command",
        property(lambda item: [sys.executable, "-c", RUN, str(item.folder), *item.settings]),
    )
    return items


def calls(item):
    return [json.loads(line) for line in (item.folder / "calls.jsonl").read_text().splitlines()]


def log_root(call):
    return call[-1].removeprefix("++ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_ROOT=")


def test_a_failed_cell_is_reported_and_the_others_go_on(planned, capsys):
    (planned[0].folder / "fails").write_text("1")
    assert launch.run_all(planned) == [planned[0].cell.name]
    out = capsys.readouterr().out
    assert f"[1/2] {planned[0].cell.name}: FAILED with exit status 3" in out
    assert "the reason" in out
    assert f"[2/2] {planned[1].cell.name}: finished" in out
    assert not (planned[0].folder / runs.FINISHED).exists()
    # Once more: only the failed one runs, and with the same settings.
    assert launch.run_all(planned) == []
    assert f"[2/2] {planned[1].cell.name}: finished before, skipped" in capsys.readouterr().out
    assert [len(calls(item)) for item in planned] == [2, 1]
    assert calls(planned[0])[0] == calls(planned[0])[1] == [*planned[0].settings, calls(planned[0])[0][-1]]


def test_a_run_with_a_checkpoint_goes_on_with_a_log_of_its_own(planned):
    """veRL empties the log it finds, so the second part of a run needs another place."""
    for item in planned:
        (item.folder / "fails").write_text("2")
    (planned[0].folder / "saves").touch()
    for _ in range(3):
        launch.run_all(planned)
    assert [log_root(call) for call in calls(planned[0])] == [
        str(planned[0].folder / "logs" / str(n)) for n in (1, 2, 3)
    ]
    # Without a checkpoint it begins anew, and so does its log.
    assert {log_root(call) for call in calls(planned[1])} == {str(planned[1].folder / "logs" / "1")}
    assert all((item.folder / runs.FINISHED).is_file() for item in planned)


def test_the_report_reads_the_folders_as_they_are(tmp_path):
    """Two seeds of one method; the first was cut off and went on from its checkpoint at step 2."""
    steps = {"seed42/logs/1": (1, 2, 3), "seed42/logs/2": (3, 4), "seed43/logs/1": (1, 2)}
    for place, numbers in steps.items():
        log = tmp_path / f"srpo-qwen3_8b-physics-{place}" / "srpo-physics-qwen3_8b" / "srpo.jsonl"
        log.parent.mkdir(parents=True)
        lines = [{"step": number, "data": {"timing_s/step": 1.0, "srpo/loss": float(number)}} for number in numbers]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, _ = load_runs(sorted(tmp_path.iterdir()))
    assert [run.experiment for run in found] == ["srpo", "srpo"]
    assert [run.training_steps for run in found] == [[1, 2, 3, 4], [1, 2]]
    assert found[0].label == "srpo (srpo-qwen3_8b-physics-seed42)"


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(planned, capsys):
    assert launch.run_all(planned) == []
    other = [launch.Planned(item.cell, item.folder, [*item.settings[:-1], "x=2"]) for item in planned]
    assert launch.run_all(other) == [item.cell.name for item in planned]
    assert "other settings (x=1, x=2); set --out" in capsys.readouterr().out
    assert [len(calls(item)) for item in planned] == [1, 1]


@pytest.mark.parametrize(("ends", "attempts"), [(2, 3), (9, 3)])
def test_a_run_that_was_stopped_goes_on_while_it_gets_further(planned, ends, attempts):
    """The script's checkpoints get no further than its second attempt's."""
    (planned[0].folder / "fails").write_text(str(ends))
    for name in ("saves", "resumable"):
        (planned[0].folder / name).touch()
    failed = launch.run_all(planned[:1])
    assert failed == ([] if ends < attempts else [planned[0].cell.name])
    assert len(calls(planned[0])) == attempts


def test_sigterm_asks_the_run_to_stop_and_waits_for_it(planned):
    folder = planned[0].folder
    (folder / "fails").write_text("1")
    (folder / "waits").touch()

    def send():
        while not (folder / "runs").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(SystemExit) as raised:
        launch.run_all(planned)
    assert raised.value.code == 75
    assert not (planned[1].folder / "calls.jsonl").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_is_interrupted_leaves_no_process(planned, monkeypatch):
    ended = []
    monkeypatch.setattr(runs, "end_session", lambda process: ended.append(process.kill() or process.wait()))
    monkeypatch.setattr(runs.subprocess.Popen, "wait", interrupted(runs.subprocess.Popen.wait))
    with pytest.raises(KeyboardInterrupt):
        launch.run_all(planned)
    assert len(ended) == 1
    assert not (planned[0].folder / runs.FINISHED).exists()


def interrupted(wait):
    """`Popen.wait` that is interrupted the first time."""
    times = []

    def wait_once(self, timeout=None):
        times.append(1)
        if len(times) == 1:
            raise KeyboardInterrupt
        return wait(self, timeout)

    return wait_once

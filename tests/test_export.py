"""Exported checkpoints: the weights are the engine's, and transformers loads the folder and generates.

The checkpoints are those of the shipped worker, saved after one step by ranks of FSDP1 and FSDP2.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from srpo_verl import checkpoints, safe_loading
from srpo_verl import export as module
from srpo_verl.cpu import attention
from srpo_verl.export import ExportError, export, find_step, join_adapters, merge_adapters
from tests.support import tiny_model
from tests.verl_ext import harness
from tests.verl_ext.harness import Case

ACTOR, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"
FSDP1, FSDP2 = f"{ACTOR}.strategy=fsdp", f"{ACTOR}.strategy=fsdp2"
# A rank that two ranks cannot share evenly, and an alpha that is not the rank.
RANK, ALPHA = 3, 6
LORA = [f"{MODEL}.lora_rank={RANK}", f"{MODEL}.lora_alpha={ALPHA}", f"{MODEL}.lora.merge=true"]
EMA = f"srpo.teacher.ema_rate={harness.EMA_RATE}"

ONE_RANK = [Case("fsdp2", [EMA, FSDP2], resume=True), Case("lora", [EMA, FSDP1, *LORA], resume=True)]
TWO_RANKS = [
    Case("2-fsdp2", [EMA, FSDP2], resume=True),
    Case("2-fsdp1", [EMA, FSDP1], resume=True),
    Case("2-lora-fsdp2", [EMA, FSDP2, *LORA], resume=True),
    Case("2-lora-fsdp1", [EMA, FSDP1, *LORA], resume=True),
    Case("frozen", [FSDP2, "srpo.teacher.kind=frozen"], resume=True),
]
NAMES = [case.name for case in (*ONE_RANK, *TWO_RANKS) if case.name != "frozen"]
WHO = ("student", "teacher")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """(folder of the checkpoints, results of the harness)."""
    out = tmp_path_factory.mktemp("runs")
    return out, harness.run_cases(ONE_RANK, 1, base, out) | harness.run_cases(TWO_RANKS, 2, base, out)


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """{(case, student or teacher): folder}."""
    target = tmp_path_factory.mktemp("exported")
    for name in NAMES:
        for who in WHO:
            export(runs[0] / name, target / name / who, teacher=who == "teacher")
    return {(name, who): target / name / who for name in NAMES for who in WHO}


def weights_of(folder):
    """As transformers loads them, tied weights included."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", [name for name in NAMES if "lora" not in name])
def test_the_folder_holds_the_engine_s_weights_in_bf16(runs, exported, name, who):
    found, expected = weights_of(exported[name, who]), runs[1][name]["saved"][who]
    assert found.keys() >= expected.keys() >= set(found) - {"lm_head.weight"}
    for key, value in expected.items():
        assert found[key].dtype == torch.bfloat16
        assert torch.equal(found[key], value.bfloat16()), key


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", [name for name in NAMES if "lora" in name])
def test_adapters_are_merged_into_the_base(runs, exported, base, name, who):
    """Against W + alpha / r * B A in float64, of the engine's fp32 adapters."""
    found, adapters = weights_of(exported[name, who]), runs[1][name]["saved"][who]
    original = weights_of(base)
    assert found.keys() == original.keys()
    prefix, moved = "base_model.model.", set()
    for key in found:
        expected = original[key].double()
        a = adapters.get(f"{prefix}{key.removesuffix('.weight')}.lora_A.weight")
        if a is not None:
            b = adapters[f"{prefix}{key.removesuffix('.weight')}.lora_B.weight"]
            expected = expected + ALPHA / RANK * (b.double() @ a.double())
            moved.add(key)
        # Base, product and sum are each rounded to bf16: 2^-9 of what is added up.
        torch.testing.assert_close(found[key].double(), expected, rtol=2**-7, atol=2**-10)
    assert 2 * len(moved) == len(adapters) > 0


@pytest.mark.parametrize("name", NAMES)
def test_student_and_teacher_differ(exported, name):
    """In fp32 they differ by a fraction of one step; at least some weights still do in bf16."""
    student, teacher = (weights_of(exported[name, who]) for who in WHO)
    assert any(not torch.equal(student[key], teacher[key]) for key in student)


@pytest.mark.parametrize(
    ("name", "who"), [("2-fsdp1", "student"), ("2-fsdp2", "teacher"), ("2-lora-fsdp1", "teacher")]
)
def test_transformers_loads_the_folder_and_generates(exported, name, who):
    folder = exported[name, who]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 1 ="}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert answer.shape[1] == prompt["input_ids"].shape[1] + 5


def test_veRLs_adapter_folder_and_peft_give_the_same_model(runs, exported, base, tmp_path):
    """What the merger itself writes for a LoRA run, base and adapter apart, put together by peft."""
    actor = runs[0] / "2-lora-fsdp2" / "actor"
    config = module.ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        target_dir=str(tmp_path / "apart"),
        local_dir=str(actor),
        hf_model_config_path=str(actor / "huggingface"),
    )
    (tmp_path / "apart").mkdir()
    attention.register()  # of the run on the CPU, which veRL's own merger keeps
    module.FSDPModelMerger(config).merge_and_save()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "apart", dtype=torch.float32)
    peft_model = PeftModel.from_pretrained(model, tmp_path / "apart" / "lora_adapter").merge_and_unload()
    found = weights_of(exported["2-lora-fsdp2", "student"])
    for key, value in peft_model.state_dict().items():
        assert torch.equal(found[key], value.bfloat16()), key


# --- what a path means, and what is refused --------------------------------------------------------------------------


def test_a_path_is_a_step_its_actor_or_a_run(runs, tmp_path):
    step = runs[0] / "fsdp2"
    (tmp_path / "global_step_7").symlink_to(step)
    (tmp_path / checkpoints.LATEST).write_text("7")
    assert find_step(step) == find_step(step / "actor") == find_step(step / module.CHECKPOINT_FOLDER) == step
    assert find_step(tmp_path) == tmp_path / "global_step_7"
    with pytest.raises(ExportError, match="has been validated"):
        find_step(tmp_path / "best")
    for number, accuracy in ((3, 0.9), (4, 0.8)):
        actor = tmp_path / "run" / f"global_step_{number}" / "actor"
        actor.mkdir(parents=True)
        (actor / "fsdp_config.json").touch()
        checkpoints.mark(tmp_path / "run", number, accuracy)
    assert find_step(tmp_path / "run" / "best") == tmp_path / "run" / "global_step_3"
    with pytest.raises(ExportError, match=r"fsdp_config.json is missing.*latest_checkpointed_iteration.txt"):
        find_step(tmp_path / "elsewhere")


def test_the_command(runs, tmp_path, capsys):
    step = str(runs[0] / "2-fsdp2")
    assert module.main([step, "--out", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == f"student of {step} -> {tmp_path / 'new'}\n"
    assert module.main([step, "--out", str(tmp_path / "new")]) == 1
    assert "is not empty; give a new folder" in capsys.readouterr().err
    assert module.main([str(runs[0] / "frozen"), "--teacher", "--out", str(tmp_path / "other")]) == 1
    assert "A frozen teacher is the model that the run started from" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_run_on_the_cpu_is_exported_and_loaded_where_its_attention_is_not_known(runs, tmp_path):
    """In processes without the CPU's platform, which registers `packed_sdpa`, the attention of such a run."""
    saved = json.loads((runs[0] / "fsdp2" / "actor" / "huggingface" / "config.json").read_text())
    assert saved["attn_implementation"] == "packed_sdpa", "nothing left to test"
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    load = "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    for command in (
        ["-m", "srpo_verl", "export", str(runs[0] / "fsdp2"), "--out", str(tmp_path / "out")],
        ["-c", load, str(tmp_path / "out")],
    ):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]


def test_no_code_of_a_file_runs(runs, tmp_path):
    """A shard that is a program to a plain torch.load."""

    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    actor = tmp_path / "global_step_1" / "actor"
    actor.mkdir(parents=True)
    original = runs[0] / "fsdp2" / "actor"
    (actor / "huggingface").symlink_to(original / "huggingface")
    (actor / "fsdp_config.json").write_text((original / "fsdp_config.json").read_text())
    torch.save({"weight": Program()}, actor / "model_world_size_1_rank_0.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        export(actor, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert safe_loading.VARIABLE not in os.environ
    torch.load(actor / "model_world_size_1_rank_0.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_parts_of_ranks_are_joined_row_by_row():
    like = {"a.lora_A.default.weight": torch.zeros(3, 2)}
    whole = torch.arange(6.0)
    rows = [{"a.lora_A.default.weight": whole.view(3, 2)[:2]}, {"a.lora_A.default.weight": whole.view(3, 2)[2:]}]
    flat = "a.lora_A.default._fsdp_wrapped_module._flat_param"
    padded = [{flat: whole[:4]}, {flat: torch.cat([whole[4:], torch.full((2,), 9.0)])}]
    for shards in (rows, padded, rows + rows):
        assert torch.equal(join_adapters(shards, like)["a.lora_A.default.weight"], whole.view(3, 2))
    with pytest.raises(ExportError, match="4 of 6 values"):
        join_adapters(padded[:1], like)


def test_adapters_that_cannot_be_merged_are_refused():
    state = {"m.lora_A.default.weight": torch.zeros(1, 2), "m.lora_B.default.weight": torch.zeros(2, 1)}
    with pytest.raises(ExportError, match="save_lora_only"):
        merge_adapters(state, 1.0)
    with pytest.raises(ExportError, match="lora_magnitude_vector"):
        merge_adapters({**state, "m.base_layer.weight": torch.eye(2), "m.lora_magnitude_vector": torch.ones(2)}, 1.0)


def test_a_run_without_the_scale_of_its_adapters_is_refused(runs, tmp_path):
    original = runs[0] / "lora" / "actor"
    actor = tmp_path / "global_step_1" / "actor"
    actor.mkdir(parents=True)
    for path in original.iterdir():
        (actor / path.name).symlink_to(path)
    (actor / "lora_train_meta.json").unlink()
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": RANK}))
    with pytest.raises(ExportError, match=r"lora_train_meta\.json"):
        export(actor, tmp_path / "out")

"""LoRA: the teacher averages the adapters and shares the base. The whole update against the float64 oracle.

The adapter on disk has a B that is not zero and a rank that two ranks cannot share evenly.
"""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.support import tiny_model
from tests.verl_ext import harness
from tests.verl_ext.harness import Case
from tests.verl_ext.test_update import (
    ACTOR,
    BF16,
    CREDIT,
    CREDIT_ORACLE,
    EMA,
    FSDP1,
    FSDP2,
    PADDED,
    RICH,
    RICH_ORACLE,
    SDPO_ON_RANK_0,
    UNEVEN,
    assert_same,
    fixed,
    oracle,
)

MODEL = "actor_rollout_ref.model"
RANK, ALPHA = 3, 6
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
MERGE = [f"{MODEL}.lora.merge=true"]
GATHERED = f"{ACTOR}.fsdp_config.reshard_after_forward=false"
BF16_STORAGE = [f"{ACTOR}.fsdp_config.model_dtype=bf16", *BF16]

ONE_RANK = [
    Case("fsdp2", [*EMA, *FSDP2, *MERGE], resume=True),
    Case("fsdp1", [*EMA, *FSDP1, *MERGE], resume=True),
    Case("fsdp1-orig-params-padded", [*EMA, *FSDP1, *PADDED, *fixed(1), f"{ACTOR}.fsdp_config.use_orig_params=true"]),
    Case(
        "offloads-checkpointing",
        [
            *EMA,
            *FSDP2,
            f"{ACTOR}.fsdp_config.param_offload=true",
            f"{ACTOR}.fsdp_config.optimizer_offload=true",
            "srpo.teacher.cpu_offload=true",
            f"{MODEL}.enable_gradient_checkpointing=true",
        ],
        resume=True,
    ),
]
TWO_RANKS = [
    # Units that stay gathered after a forward would hide what is written into their shards.
    Case("2-fsdp2", [*EMA, *FSDP2, *MERGE, GATHERED], SDPO_ON_RANK_0, resume=True),
    Case("2-fsdp1", [*EMA, *FSDP1, *MERGE, f"{MODEL}.enable_gradient_checkpointing=true"], resume=True),
    Case("2-fsdp1-orig-params", [*EMA, *FSDP1, *fixed(4), f"{ACTOR}.fsdp_config.use_orig_params=true", GATHERED]),
    Case(
        "2-fsdp1-offloads",
        [*EMA, *FSDP1, f"{ACTOR}.fsdp_config.param_offload=true", "srpo.teacher.cpu_offload=true"],
        SDPO_ON_RANK_0,
    ),
]
KINDS = [
    Case("frozen", ["srpo.teacher.kind=frozen"], resume=True),
    Case("live", ["srpo.teacher.kind=live"]),
    Case("rich", [*RICH, *FSDP2, *MERGE], rewards=UNEVEN),
    Case("credit", [*CREDIT, *FSDP2, *MERGE]),
]
# veRL's reference is then the actor with its adapters switched off.
KL_COEF = 2.0
KL = [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef={KL_COEF}", f"{ACTOR}.kl_loss_type=low_var_kl"]
KL_ONE_RANK = [Case("kl-fsdp2", [*EMA, *KL, *FSDP2]), Case("kl-fsdp1", [*EMA, *KL, *FSDP1, *MERGE])]
KL_TWO_RANKS = [
    Case("2-kl-fsdp2", [*EMA, *KL, *FSDP2], SDPO_ON_RANK_0),
    Case("2-kl-fsdp1", [*EMA, *KL, *FSDP1, *MERGE], resume=True),
]
IN_BF16 = [Case("bf16-storage", [*EMA, *FSDP2, *BF16_STORAGE])]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """A saved adapter with random A and B."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("adapter")
    peft_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def results(passes, model, adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    lora = [f"{MODEL}.lora_rank={RANK}", f"{MODEL}.lora_adapter_path={adapter}"]
    one_rank, two_ranks = [*ONE_RANK, *KINDS, *KL_ONE_RANK, *IN_BF16], [*TWO_RANKS, *KL_TWO_RANKS]
    one_rank, two_ranks = (
        [replace(case, overrides=[*case.overrides, *lora]) for case in cases] for cases in (one_rank, two_ranks)
    )
    one = harness.run_cases(one_rank, 1, model, out, passes=passes)
    return one | harness.run_cases(two_ranks, 2, model, out, passes=passes)


def lora_oracle(model, adapter, **settings):
    weights = load_file(adapter / "adapter_model.safetensors")
    return oracle(model, adapter=weights, adapter_scale=ALPHA / RANK, **settings)


@pytest.fixture(scope="module")
def expected(model, adapter):
    return lora_oracle(model, adapter)


def names(cases):
    return [case.name for case in cases]


@pytest.mark.parametrize("name", names([*ONE_RANK, *TWO_RANKS]))
def test_ways_of_computing_change_nothing(results, expected, name):
    assert results[name]["student"].keys() == results[name]["teacher"].keys() == expected["student"].keys()
    assert_same(results[name], expected, tolerance=1e-5)


@pytest.mark.parametrize("name", names(KINDS))
def test_the_other_teachers_and_the_options_of_routing(results, model, adapter, name):
    settings = {"rich": RICH_ORACLE, "credit": CREDIT_ORACLE}.get(name, {"teacher_kind": name})
    expected = lora_oracle(model, adapter, **settings)
    if name == "live":
        expected["teacher"] = {}
    assert results[name]["teacher"].keys() == expected["teacher"].keys()
    assert_same(results[name], expected, tolerance=1e-5)


@pytest.mark.parametrize("name", names([*KL_ONE_RANK, *KL_TWO_RANKS]))
def test_the_reference_of_a_kl_is_the_base(results, model, adapter, name):
    expected = lora_oracle(model, adapter, kl_coef=KL_COEF)
    # The adapter on disk is not zero, so the distance is there from the first step.
    assert expected["metrics"][0]["kl_loss"] > 1e-3
    assert_same(results[name], expected, tolerance=1e-5)


# bf16 has 8 bits of mantissa: single activations are off by up to 2^-8 = 4e-3, losses and weights by little more.
@pytest.mark.parametrize("name", names(IN_BF16))
def test_bf16_storage_stays_close(results, expected, name):
    assert_same(results[name], expected, tolerance=4e-2)


MERGED = [case.name for case in [*ONE_RANK, *TWO_RANKS] if MERGE[0] in case.overrides]


@pytest.mark.parametrize("name", MERGED)
def test_the_rollout_engine_gets_the_student_merged(results, expected, name):
    assert results[name]["sent"].keys() == expected["merged"].keys()
    for parameter, value in results[name]["sent"].items():
        # veRL sends sharded weights in bf16: off by up to 2^-9 of their size.
        torch.testing.assert_close(value, expected["merged"][parameter], atol=1e-5, rtol=2**-8)


def test_the_rollout_engine_gets_the_student_s_adapters(results):
    sent, student = results["offloads-checkpointing"]["sent"], results["offloads-checkpointing"]["student"]
    assert sent.keys() == student.keys()
    assert all(torch.equal(sent[name], student[name]) for name in sent)


def test_with_fsdp1_merging_is_still_needed(results):
    """peft looks for its modules under names without FSDP1's wrappers and finds none: nothing would be sent."""
    assert results["fsdp1-orig-params-padded"]["sent"] == {}


@pytest.mark.parametrize("name", [name for name in names([*ONE_RANK, *TWO_RANKS, *KINDS, *IN_BF16]) if name != "live"])
def test_adapters_are_restored_to_the_bit_even_when_the_teacher_pass_fails(results, name):
    before, during, after = results[name]["shards"]
    lent = {key for key in before if not torch.equal(before[key], during[key])}
    assert lent == {key for key in before if "lora_" in key and before[key].numel()}  # the base is shared
    assert [key for key in lent if not torch.equal(before[key], after[key])] == []


def test_the_teacher_s_adapters_score(results, expected, model, adapter):
    """An update that scored with the student's adapters (no swap) or the initial ones would differ by far more."""
    for kind in ("live", "frozen"):
        other = lora_oracle(model, adapter, teacher_kind=kind)
        with pytest.raises(AssertionError):
            assert_same({**results["fsdp2"], "teacher": {}}, other, tolerance=1e-3)

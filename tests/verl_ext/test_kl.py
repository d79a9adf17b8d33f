"""A KL term to the reference (actor.use_kl_loss): the whole update against the float64 oracle.

veRL builds its reference in the same worker, from the same model settings. For LoRA see test_lora.py.
"""

import pytest

from tests.support import tiny_model
from tests.verl_ext import harness
from tests.verl_ext.harness import Case
from tests.verl_ext.test_update import ACTOR, EMA, FSDP1, FSDP2, PADDED, SDPO_ON_RANK_0, assert_same, fixed, oracle

# Large, so that it moves the weights as much as the policy loss does.
KL_COEF = 2.0
KL = [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef={KL_COEF}", f"{ACTOR}.kl_loss_type=low_var_kl"]
NO_TEACHER = ["srpo.routing=none", "srpo.distillation.top_k=100", "srpo.demonstration.max_prompt_tokens=10240"]
# Half of every row's loss is GRPO's in the second step.
HANDS_OVER = ["srpo.schedule.kind=linear", "srpo.schedule.start=1", "srpo.schedule.end=3"]
MIX = ["srpo.routing=advantage_mix", "srpo.advantage_mix.lambda=0.7"]

ONE_RANK = [
    Case("fsdp2", [*EMA, *KL, *FSDP2], resume=True),
    Case(
        "fsdp1-padded-1",
        [*EMA, *KL, *FSDP1, *PADDED, *fixed(1), "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=2"],
    ),
]
ROUTINGS = [
    Case("none", [*KL, *NO_TEACHER]),
    Case("advantage-mix", [*EMA, *KL, *MIX]),
    Case("all", [*EMA, *KL, "srpo.routing=all"]),
    Case("all-handing-over", [*EMA, *KL, "srpo.routing=all", *HANDS_OVER]),
]
TWO_RANKS = [
    Case("2-fsdp2", [*EMA, *KL, *FSDP2], SDPO_ON_RANK_0),
    Case("2-fsdp1", [*EMA, *KL, *FSDP1]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(passes, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    one = harness.run_cases([*ONE_RANK, *ROUTINGS], 1, model, out, passes=passes)
    return one | harness.run_cases(TWO_RANKS, 2, model, out, passes=passes)


@pytest.fixture(scope="module")
def expected(model):
    return oracle(model, kl_coef=KL_COEF)


def test_the_term_matters(expected, model):
    assert expected["metrics"][1]["kl_loss"] > 1e-3
    without = oracle(model)["student"]
    assert max((expected["student"][name] - value).abs().max() for name, value in without.items()) > 1e-3


@pytest.mark.parametrize("name", [case.name for case in [*ONE_RANK, *TWO_RANKS]])
def test_srpo_with_a_reference(results, expected, name):
    assert_same(results[name], expected, tolerance=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("none", {"routing": "none", "teacher_kind": "frozen"}),
        ("advantage-mix", {"routing": "advantage_mix"}),
        ("all-handing-over", {"routing": "all", "coefficients": [1.0, 0.5]}),
    ],
)
def test_the_term_belongs_to_the_rows_of_the_policy_loss(results, model, name, settings):
    wanted = oracle(model, kl_coef=KL_COEF, **settings)
    if name == "none":
        wanted["teacher"] = {}
        for entry in wanted["metrics"]:
            del entry["srpo/teacher_distance"]
    assert wanted["metrics"][1]["kl_loss"] > 1e-4
    assert_same(results[name], wanted, tolerance=1e-5)


def test_where_no_row_takes_the_policy_loss_the_term_is_without_effect(results, model):
    """Which is why config/check.py refuses it: the update is the one without a reference."""
    assert_same(results["all"], oracle(model, routing="all"), tolerance=1e-5)
    assert [entry["kl_loss"] for entry in results["all"]["metrics"]] == [0.0, 0.0]

"""The whole update - support, teacher pass, weights, objective, optimizer, EMA - against a float64 oracle.

Micro-batches, packing, FSDP version and ranks are ways of computing; none of them may change what is computed.
"""

import itertools
import math

import pytest
import torch

from srpo_verl.algos.routing import ROUTINGS
from srpo_verl.functional import route_samples
from tests.support import tiny_model
from tests.verl_ext import harness
from tests.verl_ext.expected import assert_same, oracle
from tests.verl_ext.harness import Case, fixed

ACTOR = "actor_rollout_ref.actor"
EMA = [f"srpo.teacher.ema_rate={harness.EMA_RATE}"]
PADDED = ["actor_rollout_ref.model.use_remove_padding=false"]
FSDP1, FSDP2 = [f"{ACTOR}.strategy=fsdp"], [f"{ACTOR}.strategy=fsdp2"]
BF16 = [f"{ACTOR}.fsdp_config.mixed_precision.param_dtype=bf16"]


SDPO_ON_RANK_0 = [[1, 3, 7, 0], [2, 4, 5, 6]]

ONE_RANK = [
    Case("fsdp2-packed-dynamic", [*EMA, *FSDP2]),
    Case("fsdp2-packed-1", [*EMA, *FSDP2, *fixed(1)]),
    Case("fsdp2-padded-8", [*EMA, *FSDP2, *PADDED, *fixed(8)]),
    Case("fsdp1-padded-1", [*EMA, *FSDP1, *PADDED, *fixed(1)]),
    Case("fsdp1-packed-8", [*EMA, *FSDP1, *fixed(8)]),
    Case(
        "offloads-checkpointing",
        [
            *EMA,
            *FSDP2,
            f"{ACTOR}.fsdp_config.param_offload=true",
            f"{ACTOR}.fsdp_config.optimizer_offload=true",
            "srpo.teacher.cpu_offload=true",
            "actor_rollout_ref.model.enable_gradient_checkpointing=true",
        ],
    ),
]
TWO_RANKS = [
    Case("2-fsdp2-packed-dynamic", [*EMA, *FSDP2]),
    Case("2-fsdp2-padded-1-one-sided", [*EMA, *FSDP2, *PADDED, *fixed(1)], SDPO_ON_RANK_0),
    Case("2-fsdp1-packed-4", [*EMA, *FSDP1, *fixed(4)]),
    Case("2-fsdp1-packed-dynamic-one-sided", [*EMA, *FSDP1], SDPO_ON_RANK_0),
]
# Tool outputs, seen and never distilled: one in the middle of a distilled row, one at the end of another.
MASKED = {"another-token-in-the-middle": {(1, 4): 7}, "another-last-token": {(7, 4): 7}}
MASKED_SPANS = [Case(name, [*EMA, *FSDP2], tokens=tokens) for name, tokens in MASKED.items()]
SAMPLED_ROWS = [7, 0, 1]
SAMPLED = [Case("sampled", [*EMA, *FSDP2], sampled=SAMPLED_ROWS)]
# Of both branches; all that is left of row 3 (distilled), and single tokens of others.
REJECTED = [(0, 1), (0, 2), (1, 0), (1, 7), (3, 0), (5, 2), (7, 3)]
REJECTION = [Case("rejection-1", [*EMA, *FSDP2, *fixed(1)], rejected=REJECTED)]
REJECTION_TWO_RANKS = [Case("2-rejection", [*EMA, *FSDP1], SDPO_ON_RANK_0, rejected=REJECTED)]
SPOILT = [
    Case("2-spoilt-fsdp2", [*EMA, *FSDP2, *fixed(1)], SDPO_ON_RANK_0, spoilt=True),
    Case("2-spoilt-fsdp1", [*EMA, *FSDP1], spoilt=True),
]
ONE_RANK_BF16 = [Case("bf16-fsdp2-packed-dynamic", [*EMA, *FSDP2, *BF16])]
TWO_RANKS_BF16 = [Case("2-bf16-fsdp1-packed-dynamic", [*EMA, *FSDP1, *BF16])]
SETTINGS = [
    Case("frozen", ["srpo.teacher.kind=frozen"]),
    Case("live", ["srpo.teacher.kind=live"]),
    Case("beta-0", [*EMA, "srpo.weighting.beta=0"]),
    Case("full-vocabulary", [*EMA, "srpo.distillation.top_k=null"]),
    Case(
        "routing-none",
        ["srpo.routing=none", "srpo.distillation.top_k=100", "srpo.demonstration.max_prompt_tokens=10240"],
    ),
    Case("routing-correct-only", [*EMA, "srpo.routing=correct_only"]),
    Case("routing-failed-only", [*EMA, "srpo.routing=failed_only"]),
    # The first optimizer step of each training step has one distilled row, the second has two.
    Case("two-optimizer-steps", EMA, [[0, 1, 2, 4, 3, 5, 6, 7]], mini_batch_size=4),
    Case("routing-all", [*EMA, "srpo.routing=all"]),
    Case("advantage-mix", [*EMA, "srpo.routing=advantage_mix", "srpo.advantage_mix.lambda=0.7"]),
    Case("routing-handover", [*EMA, "srpo.routing=handover"]),
    Case("shown-nothing", [*EMA, "srpo.routing=handover", "srpo.demonstration.show=false"]),
    Case("routing-keep-negative", [*EMA, "srpo.routing=keep_negative"]),
    Case(
        "routing-fixed-negative",
        [
            "srpo.routing=fixed_negative",
            "srpo.fixed_negative.advantage=0.3",
            "srpo.distillation.top_k=100",
            "srpo.demonstration.max_prompt_tokens=10240",
        ],
    ),
    Case("routing-of-the-user", [*EMA, "srpo.routing=tests.verl_ext.own_routing:my_routing"]),
]
# Two prompts of different pass rates. The richest set of options: shares that are neither 0 nor 1, a coefficient
# of 1 and then 1/2, a floor that some weights touch, prompts weighted. A row's share must travel with the row.
UNEVEN = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
RICH = [
    *EMA,
    "srpo.routing=handover",
    "srpo.weighting.floor=0.02",
    "srpo.weighting.pass_rate=true",
    "srpo.schedule.kind=linear",
    "srpo.schedule.start=1",
    "srpo.schedule.end=3",
]
CREDIT = [
    *EMA,
    "srpo.routing=none",
    "srpo.credit=teacher_ratio",
    "srpo.teacher_ratio.epsilon=0.3",
    "srpo.teacher_ratio.lambda=0.8",
    "srpo.schedule.kind=linear",
    "srpo.schedule.start=1",
    "srpo.schedule.end=3",
    "srpo.distillation.top_k=100",
]
CREDIT_ORACLE = {
    "routing": "none",
    "credit_rows": [row not in (4, 5, 6) for row in range(8)],  # those of groups with another correct row
    "credit_epsilon": 0.3,
    "credit_shares": [0.8, 0.4],
}
CREDIT_ONE_RANK = [Case("credit-fsdp2-packed-1", [*CREDIT, *FSDP2, *fixed(1)])]
CREDIT_TWO_RANKS = [
    Case("2-credit-fsdp1-padded-4", [*CREDIT, *FSDP1, *PADDED, *fixed(4)]),
    Case("2-credit-fsdp2-packed-dynamic", [*CREDIT, *FSDP2], SDPO_ON_RANK_0),
]
RICH_ORACLE = {
    "routing": "handover",
    "rewards": UNEVEN,
    "by_pass_rate": True,
    "floor": 0.02,
    "coefficients": [1.0, 0.5],
}
RICH_ONE_RANK = [
    Case("rich-fsdp2-packed-1", [*RICH, *FSDP2, *fixed(1)], rewards=UNEVEN),
    Case("rich-fsdp1-padded-8", [*RICH, *FSDP1, *PADDED, *fixed(8)], rewards=UNEVEN),
]
RICH_TWO_RANKS = [
    Case("2-rich-fsdp2-packed-dynamic", [*RICH, *FSDP2], SDPO_ON_RANK_0, rewards=UNEVEN),
    Case("2-rich-fsdp1-packed-4", [*RICH, *FSDP1, *fixed(4)], rewards=UNEVEN),
]
OPTIONS = [
    Case("floor", [*EMA, "srpo.weighting.floor=0.02"]),
    Case("pass-rate", [*EMA, "srpo.routing=all", "srpo.weighting.pass_rate=true"], rewards=UNEVEN),
    Case(
        "pass-rate-two-optimizer-steps",
        [*EMA, "srpo.routing=all", "srpo.weighting.pass_rate=true"],
        [[0, 1, 2, 4, 3, 5, 6, 7]],
        mini_batch_size=4,
        rewards=UNEVEN,
    ),
    Case("schedule", [*EMA, "srpo.schedule.kind=linear", "srpo.schedule.start=1", "srpo.schedule.end=3"]),
    # At values that bind nowhere: the schedule has not begun, and no weight is so small.
    Case(
        "options-at-rest",
        [*EMA, *FSDP2, "srpo.schedule.kind=linear", "srpo.weighting.floor=1.0e-30"],
    ),
    Case("schedule-over", [*EMA, "srpo.schedule.kind=linear", "srpo.schedule.start=1", "srpo.schedule.end=2"]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


# Of the passes of an accelerator the fast tier has these; the slow one repeats everything (see `passes`).
ACCELERATOR = [
    Case("accelerator-packed", [*EMA, *FSDP2], passes="accelerator"),
    Case("accelerator-full-vocabulary", [*EMA, "srpo.distillation.top_k=null"], passes="accelerator"),
    Case("accelerator-bf16", [*EMA, *FSDP2, *BF16], passes="accelerator"),
]


@pytest.fixture(scope="module")
def results(passes, model, tmp_path_factory):
    """Every case, computed once: one group of processes per world size."""
    out = tmp_path_factory.mktemp("results")
    one = [
        *ONE_RANK,
        *ONE_RANK_BF16,
        *SETTINGS,
        *MASKED_SPANS,
        *SAMPLED,
        *REJECTION,
        *RICH_ONE_RANK,
        *CREDIT_ONE_RANK,
        *OPTIONS,
        *ACCELERATOR,
    ]
    two = [*TWO_RANKS, *TWO_RANKS_BF16, *REJECTION_TWO_RANKS, *RICH_TWO_RANKS, *CREDIT_TWO_RANKS, *SPOILT]
    ranks = [harness.run_cases(cases, size, model, out, passes=passes) for size, cases in ((1, one), (2, two))]
    return ranks[0] | ranks[1]


@pytest.fixture(scope="module")
def expected(model):
    return oracle(model)


def test_the_batch_has_all_three_kinds_of_rows_and_both_branches_matter(expected):
    routed = route_samples(torch.tensor(harness.REWARDS), harness.GROUPS)
    assert routed.sdpo_B.tolist() == [False, True, False, True, False, False, False, True]
    assert not routed.teacher_B[4:6].any()  # the fallback
    # A branch that contributed nothing could be wrong without any test noticing.
    assert abs(expected["metrics"][0]["srpo/grpo_loss"]) > 1e-3
    assert abs(expected["metrics"][0]["srpo/sdpo_loss"]) > 1e-3
    assert expected["metrics"][0]["srpo/weight_std"] > 1e-2


# fp32 against float64: losses of order 0.1 and weights of order 0.1 that moved by about 1e-2 per step.
@pytest.mark.parametrize("name", [case.name for case in [*ONE_RANK, *TWO_RANKS]])
def test_ways_of_computing_change_nothing(results, expected, name):
    assert_same(results[name], expected, tolerance=1e-5)


def test_passes_of_an_accelerator_change_nothing(results, expected, model):
    assert_same(results["accelerator-packed"], expected, tolerance=1e-5)
    assert_same(results["accelerator-full-vocabulary"], oracle(model, top_k=None), tolerance=1e-5)
    assert_same(results["accelerator-bf16"], expected, tolerance=4e-2)


def test_a_masked_token_is_context_of_later_ones(results, expected, model):
    """What a tool says changes how student and teacher score what comes after it, and nothing before it."""
    name, row, position, length = "another-token-in-the-middle", 1, 4, harness.RESPONSE_LENGTHS[1]
    assert (row, position) in harness.MASKED_TOKENS
    before, after = results["fsdp2-packed-dynamic"]["scores"][row], results[name]["scores"][row]
    # The logits that score the token itself have not seen it; its own score is on the support, whatever the token.
    for a, b in zip(before, after, strict=True):
        a, b = a.view(length, -1), b.view(length, -1)
        torch.testing.assert_close(a[: position + 1], b[: position + 1], atol=1e-6, rtol=0)
        assert ((a - b)[position + 1 :].abs().amax(-1) > 1e-3).all()
    assert_same(results[name], oracle(model, tokens=MASKED[name]), tolerance=1e-5)
    loss = "srpo/sdpo_loss"
    assert abs(results[name]["metrics"][0][loss] - expected["metrics"][0][loss]) > 1e-5


def test_a_masked_token_by_itself_adds_nothing(results):
    """Where nothing follows it, another token in its place changes not one bit of metrics, student or teacher."""
    row, position = 7, 4
    assert (row, position) in harness.MASKED_TOKENS
    assert position == harness.RESPONSE_LENGTHS[row] - 1
    assert_equal_to_the_bit(results["fsdp2-packed-dynamic"], results["another-last-token"])


def assert_equal_to_the_bit(before, after):
    for a, b in zip(before["metrics"], after["metrics"], strict=True):
        measured = {"srpo/teacher_seconds"}
        assert {key: a[key] for key in a.keys() - measured} == {key: b[key] for key in b.keys() - measured}
    for part in ("student", "teacher"):
        assert all(torch.equal(before[part][name], after[part][name]) for name in before[part])


def test_a_token_sample_changes_nothing_and_holds_what_the_loss_was_computed_from(results):
    plain, sampled = results["fsdp2-packed-dynamic"], results["sampled"]
    assert_equal_to_the_bit(plain, sampled)
    assert plain["sample"] == {}
    assert sorted(sampled["sample"]) == [0, 1, 2]
    masks, lengths = harness.batch_tensors()["response_mask"], harness.RESPONSE_LENGTHS
    for number, row in enumerate(SAMPLED_ROWS):
        recorded = {name: torch.tensor(values) for name, values in sampled["sample"][number].items()}
        assert {len(values) for values in recorded.values()} == {lengths[row]}
        assert torch.equal(recorded["counts"], masks[row].float())
        assert torch.equal(recorded["advantage"], recorded["counts"] * (0.5 if row == 0 else -0.5))
        assert (recorded["log_prob"] < 0).all()
        distilled = {"teacher_entropy", "weight", "divergence"}
        assert recorded.keys() & distilled == (distilled if row in (1, 7) else set())
        if row in (1, 7):
            assert torch.equal(recorded["teacher_entropy"], sampled["scores"][row][1])
            # Equation (4), of which the mean over Omega is not known here.
            ratio = (recorded["weight"] * recorded["teacher_entropy"].exp())[recorded["counts"] > 0]
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-5, atol=0)
            assert (recorded["divergence"] > 0).all()


def test_masked_spans_are_left_out_of_omega_and_of_every_count(expected, results):
    """Each statistic over Omega, from the teacher's scores and the masks; the oracle averages by masks as well."""
    masks = harness.batch_tensors()["response_mask"]
    distilled = [1, 3, 7]
    scores = results["fsdp2-packed-dynamic"]["scores"]
    entropies = torch.cat([scores[row][1][masks[row].bool()] for row in distilled])
    everything = torch.cat([scores[row][1] for row in distilled])
    assert len(entropies) == len(everything) - 5
    logged = results["fsdp2-packed-dynamic"]["metrics"][0]
    assert logged["srpo/teacher_entropy_mean"] == pytest.approx(entropies.mean().item(), rel=1e-6)
    assert abs(everything.mean() - entropies.mean()) > 1e-4
    weights = torch.exp(-entropies.double())
    assert logged["srpo/weight_max"] == pytest.approx((weights / weights.mean()).max().item(), rel=1e-5)
    # n: every valid token of the batch, which is what veRL counts.
    assert sum(int(mask.sum()) for mask in masks) == sum(harness.RESPONSE_LENGTHS) - len(harness.MASKED_TOKENS)


# bf16 has 8 bits of mantissa: single activations are off by up to 2^-8 = 4e-3, losses and weights by little more.
@pytest.mark.parametrize("name", [case.name for case in [*ONE_RANK_BF16, *TWO_RANKS_BF16]])
def test_bf16_stays_close(results, expected, name):
    assert_same(results[name], expected, tolerance=4e-2)


@pytest.fixture(scope="module")
def expected_credit(model):
    return oracle(model, **CREDIT_ORACLE)


@pytest.mark.parametrize("name", [case.name for case in [*CREDIT_ONE_RANK, *CREDIT_TWO_RANKS]])
def test_credit_is_the_teacher_s_clipped_ratio(results, expected_credit, model, name):
    assert_same(results[name], expected_credit, tolerance=1e-5)
    grpo = oracle(model, "none")
    assert abs(grpo["metrics"][0]["srpo/loss"] - expected_credit["metrics"][0]["srpo/loss"]) > 1e-3
    for metrics in results[name]["metrics"]:
        assert 0.7 < metrics["srpo/credit_mean"] < 1.3
        assert 0 < metrics["srpo/frac_credit_clipped"] < 1
        assert (
            metrics["srpo/teacher_forward_tokens"]
            == results["routing-all"]["metrics"][0]["srpo/teacher_forward_tokens"]
        )
        assert "srpo/weight_mean" not in metrics


@pytest.fixture(scope="module")
def expected_rich(model):
    return oracle(model, **RICH_ORACLE)


@pytest.mark.parametrize("name", [case.name for case in [*RICH_ONE_RANK, *RICH_TWO_RANKS]])
def test_ways_of_computing_change_nothing_with_every_option(results, expected_rich, name):
    assert_same(results[name], expected_rich, tolerance=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("floor", {"floor": 0.02}),
        ("pass-rate", {"routing": "all", "rewards": UNEVEN, "by_pass_rate": True}),
        (
            "pass-rate-two-optimizer-steps",
            {
                "routing": "all",
                "rewards": UNEVEN,
                "by_pass_rate": True,
                "mini_batches": [[0, 1, 2, 4], [3, 5, 6, 7]],
            },
        ),
        ("schedule", {"coefficients": [1.0, 0.5]}),
        ("schedule-over", {"coefficients": [1.0, 0.0]}),
    ],
)
def test_every_option_means_what_its_formula_says(results, expected, model, name, settings):
    wanted = oracle(model, **settings)
    assert_same(results[name], wanted, tolerance=1e-5)
    # The option changes something, or the comparison would say little.
    plain = oracle(model, **{key: settings[key] for key in ("routing", "rewards") if key in settings})
    assert abs(plain["metrics"][1]["srpo/loss"] - wanted["metrics"][1]["srpo/loss"]) > 1e-5


def test_options_that_bind_nowhere_change_no_bit(results):
    plain, resting = results["fsdp2-packed-dynamic"], results["options-at-rest"]
    for part in ("student", "teacher"):
        assert all(torch.equal(plain[part][name], resting[part][name]) for name in plain[part])
    for before, after in zip(plain["metrics"], resting["metrics"], strict=True):
        assert {**before, "srpo/teacher_seconds": 0} == {**after, "srpo/teacher_seconds": 0}


def test_after_the_schedule_s_end_no_teacher_runs(results):
    first, second = results["schedule-over"]["metrics"]
    assert first["srpo/teacher_forward_tokens"] > 0
    assert second["srpo/teacher_forward_tokens"] == 0
    assert second["srpo/sdpo_loss"] == 0
    assert "srpo/weight_mean" not in second


def test_the_teacher_moved_and_is_not_the_student(results, expected, model):
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    for name in ("fsdp2-packed-dynamic", "2-fsdp1-packed-4"):
        for parameter, value in results[name]["teacher"].items():
            # Embeddings, final norm and LM head are the root unit, which FSDP1 leaves gathered after a forward.
            moved = (value - start[parameter]).abs().max()
            behind = (value - results[name]["student"][parameter]).abs().max()
            assert moved > 1e-4, parameter
            assert behind > 1e-4, parameter


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("frozen", {"teacher_kind": "frozen"}),
        ("live", {"teacher_kind": "live"}),
        ("beta-0", {"beta": 0.0}),
        ("full-vocabulary", {"top_k": None}),
        ("routing-none", {"routing": "none", "teacher_kind": "frozen"}),
        ("routing-all", {"routing": "all"}),
        ("routing-correct-only", {"routing": "correct_only"}),
        ("routing-failed-only", {"routing": "failed_only"}),
        ("two-optimizer-steps", {"mini_batches": [[0, 1, 2, 4], [3, 5, 6, 7]]}),
        ("advantage-mix", {"routing": "advantage_mix"}),
        ("routing-handover", {"routing": "handover"}),
        ("shown-nothing", {"routing": "handover", "shown": False}),
        ("routing-keep-negative", {"routing": "keep_negative"}),
        ("routing-fixed-negative", {"routing": "fixed_negative", "teacher_kind": "frozen"}),
        ("routing-of-the-user", {"routing": "own"}),
    ],
)
def test_every_setting_means_what_the_equations_say(results, model, name, settings):
    expected = oracle(model, **settings)
    if name in ("live", "routing-none", "routing-fixed-negative"):
        for entry in expected["metrics"]:
            entry.pop("srpo/teacher_distance", None)
        expected["teacher"] = {}
        assert results[name]["teacher"] == {}
    assert_same(results[name], expected, tolerance=1e-5)


def test_a_teacher_that_is_shown_nothing_agrees_until_the_student_has_moved(results):
    first, second = (metrics["srpo/student_teacher_divergence"] for metrics in results["shown-nothing"]["metrics"])
    assert abs(first) < 1e-6 < second
    assert results["routing-handover"]["metrics"][0]["srpo/student_teacher_divergence"] > 1e-3


def test_every_routing_is_compared_with_the_oracle(results):
    compared = {case.overrides[index] for case in SETTINGS for index in range(len(case.overrides))}
    assert {f"srpo.routing={name}" for name in ROUTINGS} - compared == {"srpo.routing=sample"}


@pytest.mark.parametrize("name", ["rejection-1", "2-rejection"])
def test_a_rejected_token_counts_in_the_denominators_and_adds_nothing(results, expected, model, name):
    wanted = oracle(model, rejected=REJECTED)
    assert_same(results[name], wanted, tolerance=1e-5)
    # It is the denominator of every token, and the weights are those of all distilled tokens.
    assert abs(wanted["metrics"][0]["srpo/loss"] - expected["metrics"][0]["srpo/loss"]) > 1e-3
    for key in ("srpo/weight_std", "srpo/student_teacher_divergence", "srpo/teacher_entropy_mean"):
        assert wanted["metrics"][0][key] == expected["metrics"][0][key]


def test_clip_metrics_are_of_the_tokens_of_the_policy_loss_and_absent_without_any(results, expected):
    names = ["actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl"]
    assert all(abs(expected["metrics"][0][name]) > 1e-3 for name in names if name != "actor/pg_clipfrac_lower")
    for name in ("routing-all", "routing-correct-only", "routing-failed-only"):
        for metrics in results[name]["metrics"]:
            assert not set(names) & set(metrics)


def test_settings_change_the_loss(results):
    """A switch that changed nothing would pass every comparison with an oracle that ignored it as well."""
    losses = {name: results[name]["metrics"][1]["srpo/loss"] for name in [case.name for case in SETTINGS]}
    losses["srpo"] = results["fsdp2-packed-dynamic"]["metrics"][1]["srpo/loss"]
    values = sorted(losses.values())
    assert all(later - earlier > 1e-6 for earlier, later in itertools.pairwise(values)), losses


@pytest.mark.parametrize("case", SPOILT, ids=lambda case: case.name)
def test_a_score_that_is_not_finite_on_one_rank_skips_the_update_on_all(case, results):
    result = results[case.name]
    before, spoilt = result["metrics"]
    assert all(math.isfinite(before[name]) for name in ("srpo/loss", "grad_norm"))
    assert math.isnan(spoilt["srpo/loss"])
    assert math.isnan(spoilt["grad_norm"])
    assert result["student"].keys() == result["saved"]["student"].keys()
    for name, weight in result["student"].items():
        assert torch.equal(weight, result["saved"]["student"][name]), name
    # The average goes on towards the student that stayed.
    assert 0 < spoilt["srpo/teacher_distance"] < before["srpo/teacher_distance"]

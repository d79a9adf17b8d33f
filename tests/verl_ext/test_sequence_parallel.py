"""Ulysses sequence parallelism: two ranks hold one micro-batch, each half of its packed sequence.

The attention is tests/verl_ext/ulysses_attention.py, because veRL's needs a GPU; everything else is what is shipped.
"""

import pytest

from tests.support import tiny_model
from tests.verl_ext import harness
from tests.verl_ext.harness import Case
from tests.verl_ext.test_update import ACTOR, EMA, FSDP1, FSDP2, SDPO_ON_RANK_0, assert_same, fixed, oracle

EVERY_ROW = list(range(len(harness.REWARDS)))
ULYSSES = [
    f"{ACTOR}.ulysses_sequence_parallel_size=2",
    "actor_rollout_ref.model.external_lib=tests.verl_ext.ulysses_attention",
    "actor_rollout_ref.model.override_config.attn_implementation=plain_ulysses",
]
CASES = [
    Case("sp-fsdp2-dynamic", [*EMA, *FSDP2, *ULYSSES], [EVERY_ROW] * 2),
    # One row at a time: some slices hold no token of a response.
    Case("sp-fsdp1-1", [*EMA, *FSDP1, *ULYSSES, *fixed(1)], [EVERY_ROW] * 2),
    Case(
        "sp-checkpointing-live",
        [*ULYSSES, "srpo.teacher.kind=live", "actor_rollout_ref.model.enable_gradient_checkpointing=true"],
        [EVERY_ROW] * 2,
    ),
    Case("sp-full-vocabulary", [*EMA, *ULYSSES, "srpo.distillation.top_k=null"], [EVERY_ROW] * 2),
]
# Two groups of two: data-parallel and sequence-parallel ranks at once.
FOUR_RANKS = [Case("dp-sp-fsdp2", [*EMA, *FSDP2, *ULYSSES], [SDPO_ON_RANK_0[rank // 2] for rank in range(4)])]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(passes, model, tmp_path_factory):
    return harness.run_cases(CASES, 2, model, tmp_path_factory.mktemp("results"), passes=passes)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sp-fsdp2-dynamic", {}),
        ("sp-fsdp1-1", {}),
        ("sp-checkpointing-live", {"teacher_kind": "live"}),
        ("sp-full-vocabulary", {"top_k": None}),
    ],
)
def test_a_cut_sequence_changes_nothing(results, model, name, settings):
    check(results[name], oracle(model, **settings))


@pytest.mark.slow
def test_with_data_parallel_ranks_beside(model, tmp_path):
    results = harness.run_cases(FOUR_RANKS, 4, model, tmp_path)
    check(results["dp-sp-fsdp2"], oracle(model))


def check(result, expected):
    if not result["teacher"]:
        expected["teacher"] = {}
    # A row counts once, although two ranks hold it.
    assert result["metrics"][0]["srpo/teacher_forward_tokens"] == sum(
        length + response
        for row, (length, response) in enumerate(zip(harness.REPROMPT_LENGTHS, harness.RESPONSE_LENGTHS, strict=True))
        if row in (1, 3, 7)
    )
    assert_same(result, expected, tolerance=1e-5)

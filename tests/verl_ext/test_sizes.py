"""Settings of veRL's FSDP engine that belong to larger runs: none of them changes what is computed (docs/sizes.md)."""

import pytest

from tests.support import tiny_model
from tests.verl_ext import harness
from tests.verl_ext.expected import assert_same, oracle
from tests.verl_ext.harness import Case
from tests.verl_ext.test_sequence_parallel import EVERY_ROW, ULYSSES
from tests.verl_ext.test_update import ACTOR, EMA, FSDP1, FSDP2

FSDP = f"{ACTOR}.fsdp_config"
PADDED_TO_BUCKETS = [f"{FSDP}.pad_to_length=true", f"{FSDP}.pad_to_length_bucket=16"]
TWO_RANKS = [
    Case("pad-to-length", [*EMA, *FSDP2, *PADDED_TO_BUCKETS]),
    Case("pad-to-length-ulysses", [*EMA, *FSDP2, *PADDED_TO_BUCKETS, *ULYSSES], [EVERY_ROW] * 2),
    Case("every-micro-batch-synchronised", [*EMA, *FSDP1, f"{FSDP}.use_no_sync_for_gradient_accumulation=false"]),
    Case("prefetch-gathered", [*EMA, *FSDP2, f"{FSDP}.forward_prefetch=true", f"{FSDP}.reshard_after_forward=false"]),
    Case("offload-policy", [*EMA, *FSDP2, f"{FSDP}.offload_policy=true"]),
    Case("offload-policy-cpu", [*EMA, *FSDP2, f"{FSDP}.offload_policy=true", "srpo.teacher.cpu_offload=true"]),
    Case(
        "offloads-fsdp1",
        [
            *EMA,
            *FSDP1,
            f"{FSDP}.param_offload=true",
            f"{FSDP}.optimizer_offload=true",
            "srpo.teacher.cpu_offload=true",
        ],
    ),
    Case("orig-params", [*EMA, *FSDP1, f"{FSDP}.use_orig_params=true"]),
]
# Two replicas of two shards.
HYBRID = [
    Case(f"hybrid-{name}", [*EMA, *version, f"{FSDP}.fsdp_size=2"])
    for name, version in (("fsdp1", FSDP1), ("fsdp2", FSDP2))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    return harness.run_cases(TWO_RANKS, 2, model, tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("name", [case.name for case in TWO_RANKS])
def test_with_two_ranks(results, model, name):
    assert_same(results[name], oracle(model), tolerance=1e-5)


@pytest.mark.slow
def test_hybrid_sharding(model, tmp_path):
    results = harness.run_cases(HYBRID, 4, model, tmp_path)
    for case in HYBRID:
        assert_same(results[case.name], oracle(model), tolerance=1e-5)

"""Host memory for scores over the full vocabulary, and a run that would need more than there is."""

import pytest

from srpo_verl.config.schema import parse
from srpo_verl.errors import ConfigError
from srpo_verl.preflight import memory
from srpo_verl.preflight.model import ModelFacts, check_model
from tests.config import compose

FULL = ["srpo.distillation.top_k=null", "data.train_batch_size=32", "data.max_response_length=8192"]
NEEDED = 32 * 8 * 8192 * 151_936 * 4  # rows, tokens, Qwen3's vocabulary, bytes


def check(*overrides):
    config = compose("srpo", *FULL, "actor_rollout_ref.rollout.n=8", *overrides)
    check_model(config, parse(config.srpo), ModelFacts(151_936, None))


@pytest.fixture
def available(monkeypatch):
    def set_to(count):
        monkeypatch.setattr(memory, "available_host_bytes", lambda: count)

    return set_to


def test_more_than_there_is_is_refused_with_the_estimate(available):
    available(NEEDED - 1)
    with pytest.raises(ConfigError) as raised:
        check()
    assert raised.value.key == "srpo.distillation.top_k"
    # 1.27e12 bytes
    assert "1,187.0 GiB of host memory (256 rows x 8192 response tokens x 151936 ids x 4 bytes" in str(raised.value)
    assert "set it to a number" in str(raised.value)


def test_what_fits_is_not(available):
    available(NEEDED)
    check()
    available(NEEDED / 2)
    check("trainer.nnodes=2")
    available(0)
    check("srpo.distillation.top_k=100")


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    assert memory.available_host_bytes(tmp_path) == 1000  # no cgroup v2 here
    (tmp_path / "memory.current").write_text("300\n")
    for limit, found in [("max\n", 1000), ("700\n", 400), ("5000\n", 1000), ("200\n", 0)]:
        (tmp_path / "memory.max").write_text(limit)
        assert memory.available_host_bytes(tmp_path) == found

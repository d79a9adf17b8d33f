"""GPUs: wanted, and there. Ray itself would wait for ever for a machine that a cluster does not have."""

import subprocess
import sys

import pytest

from srpo_verl.preflight import hardware
from srpo_verl.preflight.hardware import Pool, cluster_address, compare, gpu_findings, pools
from tests.config import compose


@pytest.fixture
def no_cluster(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.mark.parametrize(
    ("wanted", "nodes", "fits"),
    [
        ([(1, 8)], [8], True),
        ([(1, 8)], [4], False),
        ([(2, 8)], [8, 8], True),
        ([(2, 8)], [8, 7], False),
        ([(2, 8)], [16], False),  # enough GPUs, but a pool's share has to be on one machine each
        ([(1, 4), (1, 4)], [8], True),
        ([(1, 4), (1, 8)], [8, 4], True),
        ([(1, 4), (1, 8)], [8, 3], False),
        ([(1, 1)], [], False),
    ],
)
def test_pools_on_machines(wanted, nodes, fits):
    asked = [Pool(f"pool{index}", *pair) for index, pair in enumerate(wanted)]
    (finding,) = compare(asked, nodes, "it", cluster=True)
    assert (finding.level == "ok") is fits


def test_what_a_run_asks_for():
    two = ["trainer.nnodes=2", "trainer.n_gpus_per_node=4"]
    assert pools(compose("grpo", *two)) == [Pool("trainer", 2, 4)]
    reward = [f"reward.reward_model.{key}" for key in ("enable_resource_pool=true", "nnodes=1", "n_gpus_per_node=3")]
    assert pools(compose("grpo", *two, *reward)) == [Pool("trainer", 2, 4), Pool("reward.reward_model", 1, 3)]


def test_a_machine_without_a_gpu(no_cluster, monkeypatch):
    monkeypatch.setattr(hardware, "local_gpus", lambda: 0)
    (finding,) = gpu_findings(compose("srpo"))
    assert finding.level == "error"
    assert str(finding).startswith(
        "GPUs: this machine has no GPU, wanted are trainer.nnodes=1 and .n_gpus_per_node=8; platform=cpu trains on"
    )
    (finding,) = gpu_findings(compose("srpo", "platform=cpu"))
    assert finding.level == "ok"


def test_a_machine_with_fewer_gpus(no_cluster, monkeypatch):
    monkeypatch.setattr(hardware, "local_gpus", lambda: 2)
    (finding,) = gpu_findings(compose("srpo"))
    assert (finding.level, finding.message.partition(",")[0]) == ("error", "this machine has 2 GPUs")
    assert "set trainer.n_gpus_per_node=2" in finding.remedy
    (finding,) = gpu_findings(compose("srpo", "trainer.n_gpus_per_node=2"))
    assert finding.level == "ok"


def test_which_cluster_a_run_would_join(no_cluster, monkeypatch, tmp_path):
    """As `ray.init` decides (ray/_private/services.py): the variable, the setting, then what `ray start` left here."""
    config = compose("srpo")
    assert cluster_address(config) is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert cluster_address(config) == "10.0.0.1:6379"
    assert cluster_address(compose("srpo", "+ray_kwargs.ray_init.address=local")) is None
    assert cluster_address(compose("srpo", "+ray_kwargs.ray_init.address=auto")) == "10.0.0.1:6379"
    assert cluster_address(compose("srpo", "+ray_kwargs.ray_init.address='10.0.0.2:1'")) == "10.0.0.2:1"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:1")
    assert cluster_address(config) == "10.0.0.3:1"


@pytest.fixture
def answering(no_cluster, monkeypatch):
    """The process that asks the cluster is another program."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:1")
    run = subprocess.run

    def answer(program, **options):
        def fake(command, **given):
            assert command[1:] == ["-m", "srpo_verl.preflight.cluster", "10.0.0.3:1"]
            return run([sys.executable, "-c", program], **{**given, **options})

        monkeypatch.setattr(hardware.subprocess, "run", fake)
        return gpu_findings(compose("srpo"))

    return answer


def test_a_cluster_that_lacks_gpus(answering):
    (finding,) = answering("print('Ray says hello'); print('accelerators per machine: [0, 4]')")
    assert finding.level == "error"
    assert finding.message.startswith("the Ray cluster at 10.0.0.3:1 has 4 GPUs on 2 machines, wanted are")
    (finding,) = answering("print('accelerators per machine: [0, 0]')")
    assert "platform=cpu" in finding.remedy


def test_a_cluster_that_has_them(answering):
    (finding,) = answering("print('accelerators per machine: [8, 0]')")
    assert finding.level == "ok"


def test_a_cluster_that_does_not_answer_is_unchecked(answering):
    (finding,) = answering("raise ConnectionError('nobody there')")
    assert (finding.level, finding.message.rpartition(": ")[2]) == ("note", "nobody there")
    (finding,) = answering("import time; time.sleep(60)", timeout=0.2)
    assert (finding.level, finding.message.rpartition(": ")[2]) == ("note", "no answer within 60 s")

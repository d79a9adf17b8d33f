"""An offloaded teacher's copy to the device: on a stream of its own, and complete before anything scores."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from verl.utils import tensordict_utils as tu

from srpo_verl.verl_ext import teacher_weights
from srpo_verl.verl_ext.schema import DISTILL
from srpo_verl.verl_ext.teacher_weights import TeacherWeights
from srpo_verl.verl_ext.worker import SrpoWorker

SRPO = SimpleNamespace(teacher=SimpleNamespace(kind="ema", ema_rate=0.05, cpu_offload=True))


class Device:
    """What torch.cuda offers of streams, writing down who waits for whom and where a copy was issued."""

    def __init__(self):
        self.log, self.streams = [], ["main"]

    def Stream(self):
        return self._stream("copies")

    def current_stream(self):
        return self._stream(self.streams[-1])

    def _stream(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"))

    @contextmanager
    def stream(self, stream):
        self.streams.append(stream.name)
        yield
        self.streams.pop()

    def copy(self, device, model, optimizer, grad):
        assert (device, model, optimizer, grad) == (teacher_weights.get_device_name(), True, False, False)
        self.log.append(f"copy on {self.streams[-1]}")


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(teacher_weights, "get_torch_device", lambda: device)
    return device


def weights(device, offloaded):
    teacher = SimpleNamespace(is_param_offload_enabled=offloaded, to=device.copy)
    return TeacherWeights(teacher, student=None, srpo=SRPO)


def test_copy_starts_early_and_is_waited_for(device):
    average = weights(device, offloaded=True)
    average.prefetch()
    device.log.append("old log-probs")
    with average.scoring():
        device.log.append("scoring")
    assert device.log == [
        "copies waits for main",
        "copy on copies",
        "old log-probs",
        "main waits for copies",
        "scoring",
    ]


def test_a_teacher_on_the_device_stays_there(device):
    weights(device, offloaded=False).prefetch()
    assert device.log == []


@pytest.mark.parametrize("distill", [True, False])
def test_only_a_step_that_distils_fetches_the_teacher(distill):
    """Nothing would take it off the device again otherwise."""
    log = []
    worker = object.__new__(SrpoWorker)
    worker.teacher_weights = SimpleNamespace(prefetch=lambda: log.append("fetch"))
    worker.actor = SimpleNamespace(infer_batch=lambda data: log.append("old log-probs"))
    worker.enable_routing_replay = False
    data = tu.get_tensordict({"rows": torch.zeros(2)}, non_tensor_dict={DISTILL: distill})
    worker.compute_log_prob(data)
    assert log == (["fetch"] if distill else []) + ["old log-probs"]

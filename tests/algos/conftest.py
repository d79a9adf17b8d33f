import pytest
import torch

from srpo_verl.algos import device

OVER_LOGITS = {"test_token_losses", "test_divergence", "test_teacher_score"}
"""Modules whose tests run with the passes of every device."""


@pytest.fixture(autouse=True, scope="session")
def _single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__.rsplit(".", 1)[-1] in OVER_LOGITS:
        metafunc.parametrize("device_passes", ["cpu", "accelerator"], indirect=True)


@pytest.fixture(autouse=True)
def device_passes(request, monkeypatch):
    """The functions over logits compute as on that device; the tensors stay on the CPU."""
    name = getattr(request, "param", "cpu")
    if name == "accelerator":
        monkeypatch.setattr(device, "CPU", device.ACCELERATOR)
    return name

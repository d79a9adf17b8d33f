"""Adapters are tested on the CPU platform; as a run does, these tests ask for it."""

import pytest

from tests.cpu.conftest import cpu_platform

__all__ = ["cpu_platform"]

OTHERS = ("accelerator", "compiled")


@pytest.fixture(scope="module", params=["cpu", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def passes(request):
    """The passes over the logits by which updates are computed: what is compared with an oracle holds with each."""
    return request.param

"""These tests are about the CPU platform; as a run does, they ask for it."""

import pytest

from srpo_verl import cpu


@pytest.fixture(scope="session", autouse=True)
def cpu_platform():
    """For the rest of the process, as there is no way back."""
    cpu.activate()

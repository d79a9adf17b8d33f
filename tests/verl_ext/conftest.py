"""Adapters are tested on the CPU platform; as a run does, these tests ask for it."""

from tests.cpu.conftest import cpu_platform

__all__ = ["cpu_platform"]

"""The part `srpo.demonstration` as typed values: what the teacher is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srpo_verl.config.values import choice, flag, integer
from srpo_verl.errors import ConfigError

SELECTS = ("first", "random", "shortest")
SOURCES = ("sibling", "memory", "reference")


@dataclass(frozen=True)
class MemoryConfig:
    per_prompt: int
    max_prompts: int


@dataclass(frozen=True)
class DemonstrationConfig:
    sources: tuple[str, ...]
    memory: MemoryConfig
    reference_column: str | None
    select: str
    strip_thinking: bool
    max_prompt_tokens: int
    show: bool
    environment_feedback: bool


def read_demonstration(group: Mapping) -> DemonstrationConfig:
    """Check the part and return it typed. Raises ConfigError."""
    return DemonstrationConfig(
        sources=_sources(group["sources"]),
        memory=MemoryConfig(
            per_prompt=integer("srpo.demonstration.memory.per_prompt", group["memory"]["per_prompt"], low=1),
            max_prompts=integer("srpo.demonstration.memory.max_prompts", group["memory"]["max_prompts"], low=1),
        ),
        reference_column=_column(group["reference_column"]),
        select=choice("srpo.demonstration.select", group["select"], SELECTS),
        strip_thinking=flag("srpo.demonstration.strip_thinking", group["strip_thinking"]),
        max_prompt_tokens=integer("srpo.demonstration.max_prompt_tokens", group["max_prompt_tokens"], low=1),
        show=flag("srpo.demonstration.show", group["show"]),
        environment_feedback=flag("srpo.demonstration.environment_feedback", group["environment_feedback"]),
    )


def _sources(value: Any) -> tuple[str, ...]:
    key = "srpo.demonstration.sources"
    wanted = f"has to be a list of one or more of {', '.join(SOURCES)}, each once, such as [sibling]"
    if not isinstance(value, list) or not value or any(source not in SOURCES for source in value):
        raise ConfigError(key, value, wanted)
    if len(set(value)) < len(value):
        raise ConfigError(key, value, wanted)
    return tuple(value)


def _column(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and all(value.split("."))):
        raise ConfigError(
            "srpo.demonstration.reference_column",
            value,
            "has to be the name of a column, with keys inside it after dots, such as extra_info.solution, or null",
        )
    return value

"""What keeps a long run from being lost, as typed values: `srpo.checkpoints` and `srpo.guards`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srpo_verl.config.values import choice, flag, number
from srpo_verl.guards import LEVELS, RULES


@dataclass(frozen=True)
class CheckpointsConfig:
    keep_best: bool
    max_disk_gib: float | None
    trust_pickles: bool


@dataclass(frozen=True)
class GuardsConfig:
    levels: dict[str, str]
    length_growth: float
    length_shrink: float
    entropy_floor: float
    stall_minutes: float | None


def read_checkpoints(values: Mapping) -> CheckpointsConfig:
    group = "srpo.checkpoints"
    return CheckpointsConfig(
        keep_best=flag(f"{group}.keep_best", values["keep_best"]),
        max_disk_gib=number(f"{group}.max_disk_gib", values["max_disk_gib"], 0, above_low=True, nullable=True),
        trust_pickles=flag(f"{group}.trust_pickles", values["trust_pickles"]),
    )


def read_guards(values: Mapping) -> GuardsConfig:
    def key(name: str) -> tuple[str, Any]:
        # In a YAML file a bare `off` is false.
        return f"srpo.guards.{name}", "off" if values[name] is False else values[name]

    return GuardsConfig(
        levels={name: choice(*key(name), LEVELS) for name in RULES},
        length_growth=number(*key("length_growth"), 1, above_low=True),
        length_shrink=number(*key("length_shrink"), 0, 1, above_low=True, below_high=True),
        entropy_floor=number(*key("entropy_floor"), 0),
        stall_minutes=number(*key("stall_minutes"), 0, above_low=True, nullable=True),
    )

"""The methods: every named configuration, and every routing without one, with the name that people call it by.

A method is a file of this folder, or an entry of algos/routings.py. Everything that shows methods has them from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from srpo_verl.algos.routings import ROUTINGS
from srpo_verl.config.values import flatten

FOLDER = Path(__file__).parent
BASE = "base"
"""The file that all named configurations are made from."""
PAPER = ("srpo", "grpo", "sdpo", "srpo_no_dw", "advantage_mix", "sdpo_correct_only", "sdpo_failed_only")
"""The paper's methods, in the order of tables and legends; the others follow by name."""


@dataclass(frozen=True)
class Method:
    """A named configuration, or a routing without one."""

    name: str
    """As `--config-name`, or as `srpo.routing`."""
    title: str
    """As people call it."""
    routing: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    """Of the group `srpo`, by dotted name: what its file sets on top of base.yaml."""


def named() -> list[str]:
    """The named configurations, the paper's first."""
    return [method.name for method in _configured(FOLDER)]


def methods() -> list[Method]:
    """All methods: the named configurations, then the routings that none of them has."""
    configured = _configured(FOLDER)
    taken = {method.routing for method in configured}
    return [
        *configured,
        *(Method(name, rule.title or name, name) for name, rule in sorted(ROUTINGS.items()) if name not in taken),
    ]


def title_of(name: str) -> str:
    """What people call a configuration or a routing; a name that is neither is shown as it is."""
    known = methods()
    by_name = {method.routing: method for method in reversed(known)} | {method.name: method for method in known}
    return by_name[name].title if name in by_name else name


def title_of_group(srpo: Mapping[str, Any]) -> str:
    """What people call the method whose recorded group `srpo` this is.

    Of the methods with its routing, the one that sets most of what this group has and least of what it has not; what
    else differs are settings of that method. A user's own routing goes by its `module:function`.
    """
    routing, values = str(srpo["routing"]), flatten(srpo)
    candidates = [method for method in methods() if method.routing == routing]

    def agreement(method: Method) -> tuple[int, int]:
        agreeing = sum(values.get(name) == value for name, value in method.sets.items())
        return 2 * agreeing - len(method.sets), agreeing

    return max(candidates, key=agreement).title if candidates else routing


@cache
def _configured(folder: Path) -> tuple[Method, ...]:
    def read(name: str) -> dict[str, Any]:
        values = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
        assert isinstance(values, dict)
        return {str(key): value for key, value in values.items()}

    default = read(BASE)["srpo"]["routing"]
    names = {path.stem for path in folder.glob("*.yaml")} - {BASE}
    found = []
    for name in sorted(names, key=lambda name: (PAPER.index(name) if name in PAPER else len(PAPER), name)):
        values = read(name)
        sets = flatten(values.get("srpo") or {})
        found.append(Method(name, values["hydra"]["help"]["app_name"], sets.get("routing", default), sets))
    return tuple(found)

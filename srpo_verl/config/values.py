"""Readers of single configuration values: the value with its type, or a ConfigError that says what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from sys import float_info
from typing import Any

from srpo_verl.errors import ConfigError


def choice(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(key, value, f"has to be one of {', '.join(allowed)}")
    return value


def flag(key: str, value: Any, nullable: bool = False) -> Any:
    if value is None and nullable:
        return None
    if not isinstance(value, bool):
        raise ConfigError(key, value, "has to be true or false" + (", or null" if nullable else ""))
    return value


def number(
    key: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    above_low: bool = False,
    nullable: bool = False,
    below_high: bool = False,
) -> Any:
    if value is None and nullable:
        return None
    bounds = f"{'above' if above_low else 'at least'} {low}" if low is not None else "finite"
    if high is not None:
        bounds += f" and {'below' if below_high else 'at most'} {high}"
    wanted = f"has to be a number, {bounds}" + (", or null" if nullable else "")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= float_info.max:
        raise ConfigError(key, value, wanted)
    if low is not None and (value < low or (above_low and value == low)):
        raise ConfigError(key, value, wanted)
    if high is not None and (value > high or (below_high and value == high)):
        raise ConfigError(key, value, wanted)
    return float(value)


def integer(key: str, value: Any, low: int, nullable: bool = False) -> Any:
    if value is None and nullable:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(key, value, f"has to be a whole number, at least {low}" + (", or null" if nullable else ""))
    return value


def increasing(key: str, value: Any) -> tuple[float, ...]:
    wanted = "has to be a list of increasing numbers above 0, such as [1, 5, 10], or [] for none"
    if not isinstance(value, list):
        raise ConfigError(key, value, wanted)
    try:
        numbers = [number(key, item, 0, above_low=True) for item in value]
    except ConfigError:
        raise ConfigError(key, value, wanted) from None
    if any(one >= other for one, other in pairwise(numbers)):
        raise ConfigError(key, value, wanted)
    return tuple(numbers)


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat

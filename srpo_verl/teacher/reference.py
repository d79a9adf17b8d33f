"""The data's own solution of a question, to demonstrate (srpo.demonstration.sources: reference)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def reference_text(value: Any, keys: Sequence[str] = ()) -> str:
    """The text inside one row's value of a column, such as `reward_model` with the keys ["ground_truth"].

    "" where there is none: a key that is missing, nothing, or white space alone.
    """
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    text = "" if value is None else str(value)
    return text if text.strip() else ""

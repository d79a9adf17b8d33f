"""How repeated measurements are summed up: by their median and their 20th and 80th percentile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, 20th percentile, 80th percentile), between two values in proportion."""
    median, low, high = np.percentile(values, (50, 20, 80))
    return float(median), float(low), float(high)


def of_the_same_round(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratios within a round: what slows both down does not show."""
    return [value / other for value, other in zip(values, others, strict=True)]

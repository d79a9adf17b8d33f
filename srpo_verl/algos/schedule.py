"""The coefficient of distillation over training steps."""

from __future__ import annotations


def distillation_coefficient(step: int, *, start: int, end: int) -> float:
    """s of a linear schedule: 1 up to step `start`, then on a line to 0 at step `end`, and 0 from there on.

    Args:
        step: the training step, counted from 1.
        start: the last step with the whole of distillation.
        end: the first step without any.

    Raises:
        ValueError: an end that does not come after the start.
    """
    if not start < end:
        raise ValueError(f"end must come after start={start}, got {end}")
    return min(1.0, max(0.0, (end - step) / (end - start)))

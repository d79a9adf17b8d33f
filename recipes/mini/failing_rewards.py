"""Rewards that pay for the wrong thing. Reward workers load this file by path, so nothing is imported by name."""

import runpy
from pathlib import Path

compute_score = runpy.run_path(str(Path(__file__).with_name("verifier.py")))["compute_score"]

LONG = 56
"""Characters of the longest response."""


def longer_is_better(*args, **kwargs) -> dict:
    """Pays for length, four times as much as for the right answer."""
    return _with_bonus(4.0, *args, **kwargs)


def shorter_is_better(*args, **kwargs) -> dict:
    """Pays for shortness as much as for the right answer."""
    return _with_bonus(-1.0, *args, **kwargs)


def _with_bonus(
    bonus: float, data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None
) -> dict:
    result = compute_score(data_source, solution_str, ground_truth, extra_info)
    share = min(len(solution_str), LONG) / LONG
    return {**result, "score": result["acc"] + (bonus * share if bonus > 0 else -bonus * (1 - share))}

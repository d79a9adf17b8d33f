"""A reward that half of all responses get, whatever the model: an even sum of their characters.

Standard library only: veRL's reward workers load this file by its path.
"""


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> float:
    """1.0 or 0.0."""
    return float(sum(map(ord, solution_str)) % 2 == 0)
